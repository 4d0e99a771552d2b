"""Bytes and flops of the operators of a training step, and the least time a GPU needs for them.

An operator is one kernel launch, or one ATen operator where PyTorch runs it. Each tensor counts
once for each time that the operator goes through it; what a cache may serve again within an
operator is not counted, and what it may serve between two operators is counted all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
PHASES = (FORWARD, BACKWARD, OPTIMIZER)
# bytes that a data-centre GPU moves in less time than it takes to start a kernel
SMALL = 1_000_000


@dataclass(frozen=True)
class Operation:
    """One operator of a step.

    Attributes:
        name: of the kernel, or of the ATen operator.
        provider: "triton" or "aten" (on a GPU: cuDNN, cuBLAS and PyTorch's own kernels).
        phase: one of `PHASES`.
        block: the block of the network whose parameters or activations it works on.
        read, written: bytes.
        flops: multiplications and additions of matrix products; element-wise work is not counted.
    """

    name: str
    provider: str
    phase: str
    block: str
    read: int
    written: int
    flops: int = 0

    @property
    def bytes(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Machine:
    """What a device moves and multiplies: bytes and flops a second, and where that is from.

    Attributes:
        gpu, family: by which the tuned tables are asked; None are those for any GPU.
    """

    name: str
    bandwidth: float
    matrix_rate: float
    source: str
    gpu: str | None = None
    family: str = "sm_90"

    def seconds(self, operation: Operation) -> float:
        """The least time of an operator: that of its bytes or of its products, if longer."""
        return max(operation.bytes / self.bandwidth, operation.flops / self.matrix_rate)


@dataclass(frozen=True)
class Sum:
    """Operators added up. `seconds` is the sum of each one's least time, `small` counts those whose
    time on a GPU is that of their launch."""

    calls: int
    small: int
    read: int
    written: int
    flops: int
    seconds: float

    @property
    def bytes(self) -> int:
        return self.read + self.written

    @staticmethod
    def of(operations: Iterable[Operation], machine: Machine) -> Sum:
        found = list(operations)
        return Sum(
            len(found),
            sum(operation.bytes < SMALL for operation in found),
            sum(operation.read for operation in found),
            sum(operation.written for operation in found),
            sum(operation.flops for operation in found),
            sum(machine.seconds(operation) for operation in found),
        )


@dataclass(frozen=True)
class Plan:
    """The operators of one way to run a training step."""

    name: str
    explanation: str
    operations: tuple[Operation, ...]

    def total(self, machine: Machine) -> Sum:
        return Sum.of(self.operations, machine)

    def grouped(self, machine: Machine, key: Callable[[Operation], Any]) -> dict[Any, Sum]:
        """Sums over the operators that `key` names alike, in order of appearance."""
        groups: dict[Any, list[Operation]] = {}
        for operation in self.operations:
            groups.setdefault(key(operation), []).append(operation)
        return {name: Sum.of(members, machine) for name, members in groups.items()}

    def block_bytes(self, block: str) -> dict[str, int]:
        """Bytes of a block by phase."""
        found = dict.fromkeys(PHASES, 0)
        for operation in self.operations:
            if operation.block == block:
                found[operation.phase] += operation.bytes
        return found

    def as_dict(self, machine: Machine) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "name": self.name,
            "explanation": self.explanation,
            "total": asdict(self.total(machine)),
            "operations": [
                {**asdict(operation), "seconds": machine.seconds(operation)}
                for operation in self.operations
            ],
        }
