"""What is measured: a module, its inputs and its loss, the same for every implementation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CPU = torch.device("cpu")
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4


@dataclass(frozen=True)
class Workload:
    """One thing to do with a module: forward, backward and, if asked for, a step of SGD.

    Attributes:
        name: as it stands in tables and files.
        build: `build(fused)` makes the module on the CPU in fp32; both have one state_dict.
        shapes: of the module's inputs, [N, C, H, W] each.
        classes: the outputs are scores of so many classes under cross-entropy; None: the
            gradient of the output is given.
        autocast: dtype of the autocast region around the forward pass, None for fp32.
        optimizer: whether SGD with momentum is part of it.
        input_gradients: whether the inputs need gradients; they then have the autocast dtype,
            being activations within a network and not images.
        device: where it runs.
        buffers: inputs that calls rotate over.
        loss_scale: of fp16 with an optimiser; constant.
        inference: only the forward pass, in eval mode and without gradients.
        kind, model, image_size: how results files call it: "train" "resnet50" at 224 pixels.
    """

    name: str
    build: Callable[[bool], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    classes: int | None = None
    autocast: torch.dtype | None = None
    optimizer: bool = False
    input_gradients: bool = False
    device: torch.device = CPU
    buffers: int = 3
    loss_scale: float = 1024.0
    inference: bool = False
    kind: str = "train"
    model: str | None = None
    image_size: int | None = None

    @property
    def batch(self) -> int:
        return self.shapes[0][0]

    def state(self) -> dict[str, Tensor]:
        """The weights every implementation starts from."""
        torch.manual_seed(0)
        return self.build(False).state_dict()


@dataclass(frozen=True)
class Batch:
    """Inputs and labels, or inputs and the gradient of the output."""

    inputs: tuple[Tensor, ...]
    target: Tensor


@dataclass(frozen=True)
class Observation:
    """What a step computed, for comparison: the output or loss, gradients, running statistics."""

    tensors: dict[str, Tensor]


def make_batches(
    workload: Workload,
    memory_format: torch.memory_format,
    *,
    count: int | None = None,
    dtype: torch.dtype | None = None,
) -> list[Batch]:
    """The buffers that calls rotate over; equal numbers whatever format or dtype is asked for."""
    # drawn where they are used: a host draws some 1e8 numbers a second
    generator = torch.Generator(workload.device).manual_seed(1)
    activations = workload.autocast if workload.input_gradients else None
    with torch.no_grad():
        out_shape = output_shape(workload) if workload.classes is None else None
    batches = []
    for _ in range(count or workload.buffers):
        inputs = []
        for shape in workload.shapes:
            # rounded to the activation dtype first, so that a reference sees the same numbers
            x = torch.randn(shape, generator=generator, device=workload.device).to(
                activations or torch.float32
            )
            x = x.to(workload.device, dtype or x.dtype, memory_format=memory_format)
            inputs.append(x.requires_grad_(workload.input_gradients))
        if workload.classes is None:
            target = torch.randn(out_shape, generator=generator, device=workload.device)
            target = target.to(workload.autocast or torch.float32)
            target = target.to(workload.device, dtype or target.dtype, memory_format=memory_format)
        else:
            target = torch.randint(
                workload.classes, (workload.batch,), generator=generator, device=workload.device
            )
        batches.append(Batch(tuple(inputs), target))
    return batches


def output_shape(workload: Workload) -> torch.Size:
    """The size of what the workload's module returns; nothing is computed."""
    with torch.device("meta"):
        inputs = [torch.empty(shape) for shape in workload.shapes]
    return workload.build(False).to("meta")(*inputs).shape


class Step:
    """A workload with one module: calling it does forward, loss, backward (and SGD) once.

    Args:
        workload: what to do.
        module: on the workload's device, with the weights to start from.
        batches: the buffers to rotate over.
        forward: called instead of the module, e.g. the compiled module.
    """

    def __init__(
        self,
        workload: Workload,
        module: nn.Module,
        batches: Sequence[Batch],
        *,
        forward: Callable[..., Tensor] | None = None,
    ) -> None:
        self.workload = workload
        self.module = module.train()
        self.batches = list(batches)
        self.forward = module if forward is None else forward
        self.optimizer = self.scaler = None
        if workload.optimizer:
            self.optimizer = torch.optim.SGD(
                module.parameters(),
                lr=LEARNING_RATE,
                momentum=MOMENTUM,
                weight_decay=WEIGHT_DECAY,
                fused=True,
            )
            if workload.autocast is torch.float16:
                self.scaler = torch.amp.GradScaler(
                    workload.device.type, init_scale=workload.loss_scale, growth_interval=10**9
                )

    def __call__(self, index: int) -> Tensor:
        return self.run(self.batches[index % len(self.batches)])

    def run(self, batch: Batch) -> Tensor:
        """One step on `batch`; the loss or the output."""
        self.release_gradients()
        out = self.forward_pass(batch)
        if self.workload.classes is None:
            out.backward(batch.target)
        elif self.scaler is not None:
            self.scaler.scale(out).backward()
        else:
            out.backward()
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.optimizer is not None:
            self.optimizer.step()
        return out

    def forward_pass(self, batch: Batch) -> Tensor:
        """The loss, or the output where the workload has no labels."""
        with self._autocast():
            out = self.forward(*batch.inputs)
            if self.workload.classes is not None:
                out = F.cross_entropy(out, batch.target)
        return out

    def _autocast(self) -> AbstractContextManager:
        if self.workload.autocast is None:
            return nullcontext()
        return torch.autocast(self.workload.device.type, dtype=self.workload.autocast)

    def release_gradients(self) -> None:
        """Drop all gradients, so that the next backward pass writes and does not add."""
        for parameter in self.module.parameters():
            parameter.grad = None
        for batch in self.batches:
            for x in batch.inputs:
                x.grad = None

    def observe(self) -> Observation:
        """What a step on the first buffer computes from the weights as they are.

        With SGD the gradients are read from its momentum, which is empty before the first step:
        there they are unscaled whoever unscaled them.

        Raises:
            FloatingPointError: the step was left out, because `loss_scale` is too large.
        """
        before = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        out = self.run(self.batches[0])
        if self.scaler is not None and self.scaler.get_scale() < self.workload.loss_scale:
            raise FloatingPointError(f"fp16 overflows at loss scale {self.workload.loss_scale:g}")
        found = {"loss" if self.workload.classes else "output": out}
        for name, parameter in self.module.named_parameters():
            if self.optimizer is not None:
                buffer = self.optimizer.state[parameter]["momentum_buffer"]
                gradient = buffer - WEIGHT_DECAY * before[name]
            else:
                gradient = parameter.grad
            found[f"gradient of {name}"] = gradient
        for number, x in enumerate(self.batches[0].inputs):
            if x.requires_grad:
                found[f"gradient of input {number}"] = x.grad
        for name, buffer in self.module.named_buffers():
            if buffer.is_floating_point():
                found[name] = buffer
        return Observation({name: t.detach().clone() for name, t in found.items()})


class InferenceStep(Step):
    """A forward pass in eval mode; what it observes is the output."""

    def __init__(self, workload, module, batches, *, forward=None) -> None:
        super().__init__(workload, module, batches, forward=forward)
        # an optimised network has no other mode, and is called in the place of `module`
        self.module = module.eval()

    def run(self, batch: Batch) -> Tensor:
        with torch.inference_mode(), self._autocast():
            return self.forward(*batch.inputs)

    def observe(self) -> Observation:
        return Observation({"output": self.run(self.batches[0]).float().clone()})


def make_step(
    workload: Workload,
    module: nn.Module,
    batches: Sequence[Batch],
    *,
    forward: Callable[..., Tensor] | None = None,
) -> Step:
    """A `Step` of what the workload asks for."""
    kind = InferenceStep if workload.inference else Step
    return kind(workload, module, batches, forward=forward)
