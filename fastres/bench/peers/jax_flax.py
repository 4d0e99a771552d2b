"""JAX with Flax: NHWC, one jitted function for the whole step, its state donated.

The weights are PyTorch's, copied; what it computes is handed back as PyTorch tensors under
PyTorch's names, so that the same check compares it. SGD is optax's, inside the jitted step.
A call waits for its result, as JAX hands out promises.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..workload import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Observation,
    Step,
    Workload,
    make_batches,
)
from .architecture import architecture
from .library import import_reason, quietly
from .peer import Peer

FLAX = "JAX/Flax"
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_STATISTICS = {"running_mean": "mean", "running_var": "var"}
_CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
_PLATFORMS = {"cpu": "cpu", "cuda": "gpu"}


class State(NamedTuple):
    """Variables of the network, and of SGD: what a step takes and gives back."""

    params: Any
    statistics: Any
    momentum: Any


class Result(NamedTuple):
    """Of a step. `gradients` is None where SGD has taken them; `finite` of fp16 with SGD."""

    output: Any
    gradients: Any
    finite: Any


class FlaxStep(Step):
    """A training step, or with `workload.inference` a forward pass, by JAX.

    Raises:
        RuntimeError: JAX has no device like the workload's.
    """

    def __init__(self, workload: Workload) -> None:
        jax = quietly("jax")
        self.workload = workload
        self.module = self.optimizer = self.scaler = None
        self.forward = self.run
        self._device = _device(workload.device)
        self._names = workload.state()
        put = partial(jax.device_put, device=self._device)
        self.batches = [
            (put(_nhwc(batch.inputs[0])), put(batch.target.cpu().numpy().astype("int32")))
            for batch in make_batches(workload, torch.contiguous_format)
        ]
        params, statistics = _variables(self._names)
        momentum = jax.tree.map(lambda p: 0 * p, params) if workload.optimizer else None
        # copies: PyTorch's memory may not be donated
        self._state = jax.tree.map(lambda t: put(t.copy()), State(params, statistics, momentum))
        with _quiet():
            self._compiled = (
                jax.jit(_step_function(workload), donate_argnums=0)
                .lower(self._state, *self.batches[0])
                .compile()
            )

    @property
    def peak_bytes(self) -> int:
        """What a step takes beside its state and its inputs, as XLA planned it."""
        planned = self._compiled.memory_analysis()
        return int(
            planned.temp_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes
        )

    def run(self, batch) -> Result:
        self._state, result = self._compiled(self._state, *batch)
        quietly("jax").block_until_ready((self._state, result))
        return result

    def release_gradients(self) -> None:
        """Nothing holds them."""

    def observe(self) -> Observation:
        before = {name: tensor.clone() for name, tensor in self._names.items()}
        result = self.run(self.batches[0])
        if self.workload.inference:
            return Observation({"output": _tensor(result.output).float()})
        if result.finite is not None and not bool(result.finite):
            raise FloatingPointError(f"fp16 overflows at loss scale {self.workload.loss_scale:g}")
        found = {"loss": _tensor(result.output)}
        optimizer = self.workload.optimizer
        for name, gradient in _named(self._state.momentum if optimizer else result.gradients):
            if optimizer:
                gradient = gradient - WEIGHT_DECAY * before[name]
            found[f"gradient of {name}"] = gradient
        found.update(self._running_statistics(before))
        return Observation(found)

    def _running_statistics(self, before: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """As PyTorch keeps them: the variance that was added to them unbiased."""
        rows = _rows_per_channel(self.workload)
        for name in before:
            layer, _, kind = name.rpartition(".")
            if kind not in _STATISTICS:
                continue
            value = _tensor(self._state.statistics[layer][_STATISTICS[kind]])
            if kind == "running_var":
                # it is 0.9 of the old plus 0.1 of the batch's
                kept = 0.9 * before[name]
                value = kept + (value - kept) * rows[layer] / (rows[layer] - 1)
            yield name, value


def _step_function(workload: Workload) -> Callable:
    jax, jnp, optax = quietly("jax"), quietly("jax.numpy"), quietly("optax")
    flax_resnet = quietly("fastres.bench.peers.flax_resnet")
    dtypes = {None: jnp.float32, torch.bfloat16: jnp.bfloat16, torch.float16: jnp.float16}
    network = flax_resnet.ResNet(
        architecture(workload), dtypes[workload.autocast], not workload.inference
    )

    def variables(params, state: State) -> dict[str, Any]:
        return {"params": params, "batch_stats": state.statistics}

    def infer(state: State, images, labels):
        return state, Result(network.apply(variables(state.params, state), images), None, None)

    # a loss scale belongs to fp16 with SGD, as in PyTorch's step
    scaled = workload.optimizer and workload.autocast is torch.float16
    scale = workload.loss_scale if scaled else 1.0

    def loss_of(params, state: State, images, labels):
        scores, updated = network.apply(variables(params, state), images, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(scores.astype(jnp.float32), labels)
        loss = jnp.mean(losses)
        return scale * loss, (loss, updated["batch_stats"])

    sgd = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.trace(MOMENTUM), optax.scale(-LEARNING_RATE)
    )

    def train(state: State, images, labels):
        gradients, (loss, statistics) = jax.grad(loss_of, has_aux=True)(
            state.params, state, images, labels
        )
        if not workload.optimizer:
            return State(state.params, statistics, None), Result(loss, gradients, None)
        gradients = jax.tree.map(lambda g: g / scale, gradients)
        before = (optax.EmptyState(), optax.TraceState(state.momentum), optax.EmptyState())
        updates, after = sgd.update(gradients, before, state.params)
        params, momentum = optax.apply_updates(state.params, updates), after[1].trace
        finite = None
        if scaled:
            # GradScaler leaves out a step that overflows
            finite = jnp.all(jnp.array([jnp.isfinite(g).all() for g in jax.tree.leaves(gradients)]))
            params, momentum = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (params, momentum), (state.params, state.momentum),
            )  # fmt: skip
        return State(params, statistics, momentum), Result(loss, None, finite)

    return infer if workload.inference else train


def _variables(state: dict[str, Tensor]) -> tuple[dict, dict]:
    """PyTorch's state_dict as Flax's parameters and statistics."""
    params: dict[str, dict] = {}
    statistics: dict[str, dict] = {}
    batch_norms = {name.rpartition(".")[0] for name in state if name.endswith(".running_mean")}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        array = tensor.detach().cpu()
        if leaf in _STATISTICS:
            statistics.setdefault(layer, {})[_STATISTICS[leaf]] = array.numpy()
        elif layer in batch_norms and leaf == "weight":
            params.setdefault(layer, {})["scale"] = array.numpy()
        elif leaf == "weight":
            order = (2, 3, 1, 0) if array.dim() == 4 else (1, 0)
            params.setdefault(layer, {})["kernel"] = array.permute(order).contiguous().numpy()
        elif leaf == "bias":
            params.setdefault(layer, {})["bias"] = array.numpy()
    return params, statistics


def _named(params: dict[str, dict]) -> Iterator[tuple[str, Tensor]]:
    """Flax's parameters, or what has their shapes, under PyTorch's names and in its order of
    dimensions."""
    for layer, leaves in params.items():
        for leaf, array in leaves.items():
            tensor = _tensor(array)
            if leaf == "kernel":
                tensor = tensor.permute((3, 2, 0, 1) if tensor.dim() == 4 else (1, 0))
            yield f"{layer}.{_LEAVES[leaf]}", tensor


def _rows_per_channel(workload: Workload) -> dict[str, int]:
    """N·H·W of the input of every BN, by its name."""
    found: dict[str, int] = {}

    def note(name: str) -> Callable:
        def hook(_module, _inputs, out: Tensor) -> None:
            found[name] = out.numel() // out.shape[1]

        return hook

    with torch.device("meta"), torch.no_grad():
        module = workload.build(False)
        for name, child in module.named_modules():
            if isinstance(child, torch.nn.BatchNorm2d):
                child.register_forward_hook(note(name))
        module(torch.empty(workload.shapes[0]))
    return found


def _nhwc(images: Tensor):
    return images.detach().cpu().permute(0, 2, 3, 1).contiguous().numpy()


def _tensor(array) -> Tensor:
    import numpy as np

    # bf16 is no dtype of NumPy's own
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _device(device: torch.device):
    """JAX's device of PyTorch's kind.

    Raises:
        RuntimeError: there is none.
    """
    # the first use starts JAX: with as many threads as PyTorch has, and without taking most of the
    # GPU's memory before anyone asked for it
    wanted = {"NPROC": str(torch.get_num_threads()), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        with _quiet():
            return quietly("jax").devices(_PLATFORMS[device.type])[device.index or 0]
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _unavailable(workload: Workload) -> str | None:
    for package in ("jax", "flax", "optax"):
        reason = import_reason(package)
        if reason is not None:
            return reason
    found = architecture(workload)
    if isinstance(found, str):
        return found
    if workload.device.type not in _PLATFORMS:
        return f"JAX runs on a CPU or a CUDA device here, the workload is on {workload.device.type}"
    # JAX is not started before it is needed: on a GPU that takes memory
    if workload.device.type == "cuda" and not any(map(find_spec, _CUDA_PLUGINS)):
        return "JAX has no CUDA plugin (pip install jax[cuda13])"
    return None


PEERS = (Peer(FLAX, FlaxStep, _unavailable),)
