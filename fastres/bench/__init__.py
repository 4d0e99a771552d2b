"""Measurement: fastres beside PyTorch, in turns, with the numbers checked before the times.

`Comparison` prepares implementations (`peers`) of a workload (`cases`), refuses a speed to one
whose numbers are wrong (`parity`), times them (`timing`) and gives rows for a table or a file.
"""

from .compare import Comparison
from .peers import EAGER, FUSED
from .workload import Workload

__all__ = ["EAGER", "FUSED", "Comparison", "Workload"]
