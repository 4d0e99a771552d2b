"""No speed without the right numbers: an implementation is compared before it is timed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from .workload import Observation, Workload, make_batches, make_step

# |ours - reference| <= 2 |PyTorch in the same dtype - reference| + this much of the reference
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float16: 3e-3}
# of gradients: where a ReLU's input is near zero, rounding decides, and a gradient jumps (measured
# on ResNet-20 in fp32 at batch 16: up to 6e-3 by eager PyTorch, which is a few such places)
GRADIENT_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 2e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Verdict:
    """Whether the numbers agree; `worst` names the tensor furthest from its bound."""

    agrees: bool
    worst: str
    error: float
    bound: float

    @property
    def reason(self) -> str:
        return (
            f"{self.worst}: relative error {self.error:.2e} against a reference in higher "
            f"precision, at most {self.bound:.2e} allowed"
        )


def reference_step(workload: Workload) -> Observation:
    """The workload by plain PyTorch in higher precision: fp64 for fp32, fp32 for the others."""
    dtype = torch.float64 if workload.autocast is None else torch.float32
    plain = replace(workload, autocast=None, optimizer=False)
    rounded = make_batches(workload, torch.contiguous_format, count=1, dtype=dtype)
    module = workload.build(False)
    module.load_state_dict(workload.state())
    module.to(workload.device, dtype)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        return make_step(plain, module, rounded).observe()


def relative_error(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference| in the Frobenius norm; infinite for NaN."""
    wide = torch.float64
    difference = (value.to(wide) - reference.to(wide)).norm()
    error = (difference / reference.to(wide).norm().clamp(min=1e-30)).item()
    return error if error == error else float("inf")


def judge(
    ours: Observation, peer: Observation, reference: Observation, dtype: torch.dtype
) -> Verdict:
    """Compare `ours` with `reference`, allowing twice the error that PyTorch's own `peer` has.

    A tensor on which the peer is better than usual by luck counts with the peer's median error.
    """
    if set(ours.tensors) != set(reference.tensors):
        differing = sorted(set(ours.tensors) ^ set(reference.tensors))
        return Verdict(False, f"tensors {', '.join(differing[:3])} on one side only", 0.0, 0.0)
    usual = {
        name: relative_error(peer.tensors[name], expected)
        for name, expected in reference.tensors.items()
    }
    typical = median(usual.values())
    verdicts = []
    for name, expected in reference.tensors.items():
        error = relative_error(ours.tensors[name], expected)
        # a loss is one number: its error says nothing about the others'
        floor = usual[name] if name == "loss" else max(usual[name], typical)
        allowed = GRADIENT_TOLERANCE if name.startswith("gradient") else TOLERANCE
        bound = 2 * floor + allowed[dtype]
        verdicts.append(Verdict(error <= bound, name, error, bound))
    return max(verdicts, key=lambda verdict: verdict.error / verdict.bound)
