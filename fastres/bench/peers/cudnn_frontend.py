"""cuDNN's fused engines through its Python frontend: a layer, or a block with identity shortcut.

Forward: [scale + bias + ReLU of the layer before +] convolution + sums of its output, as one graph
a layer, and one graph for the last BN with shortcut and ReLU. Backward: graphs for the data
gradient, for the weight gradient with the same prologue, and for the ReLU's mask; BN's gradient is
PyTorch's, which calls cuDNN's own kernel or its own. The statistics' few numbers a channel are
finished by PyTorch as well, the frontend having no Python call for it.

Written from NVIDIA's documentation and samples. It has not run: there was no GPU. Only what is
around `Engine` is tested, with PyTorch in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..workload import Step, Workload, make_batches
from .library import import_reason, quietly
from .peer import Peer, make_module

CUDNN = "cuDNN fused engines"

Prologue = tuple[Tensor, Tensor] | None  # scale and bias [C] of relu(scale * x + bias)


class Geometry(NamedTuple):
    """Of a convolution."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Layer(NamedTuple):
    """A convolution and the BN after it."""

    convolution: nn.Conv2d
    bn: nn.BatchNorm2d

    @property
    def geometry(self) -> Geometry:
        conv = self.convolution
        return Geometry(conv.stride, conv.padding, conv.dilation)


class Kernels(Protocol):
    """What the fused engines compute; activations are channels_last and of half precision."""

    def convolution(
        self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Prologue
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y, and the sums of y and of y² a channel, in fp32."""

    def normalise(self, y: Tensor, scale: Tensor, bias: Tensor, shortcut: Tensor | None) -> Tensor:
        """relu(scale * y + bias [+ shortcut])."""

    def mask(self, dz: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """dz where scale * y + bias is positive, else 0."""

    def data_gradient(
        self, dy: Tensor, weight: Tensor, geometry: Geometry, size: torch.Size
    ) -> Tensor:
        """The gradient of a convolution's input."""

    def weight_gradient(
        self, dy: Tensor, x: Tensor, geometry: Geometry, size: torch.Size, prologue: Prologue
    ) -> Tensor:
        """The gradient of a convolution's weight."""


class Engine:
    """`Kernels` by cuDNN: a graph for each operator and shape, built at its first use."""

    def __init__(self, device: torch.device) -> None:
        self._cudnn = quietly("cudnn")
        self._device = device
        with torch.cuda.device(device):
            self._handle = self._cudnn.create_handle()
        self._graphs: dict[tuple, tuple[Any, dict[str, Any], Tensor]] = {}

    def convolution(self, x, weight, geometry, prologue):
        y = _like(x, _output_size(x, weight, geometry))
        sums = [torch.empty(1, y.shape[1], 1, 1, device=x.device) for _ in range(2)]

        def build(graph, tensor):
            image = self._prologue(graph, tensor, prologue is not None)
            out = graph.conv_fprop(
                image=image, weight=tensor["weight"], **_geometry(geometry, "convolution")
            )
            return dict(zip(("sum", "squares"), graph.genstats(input=out), strict=True), y=out)

        self._run(
            ("convolution", geometry), build,
            {"x": x, "weight": weight, **_vectors(prologue, x.dtype)},
            {"y": y, "sum": sums[0], "squares": sums[1]},
        )  # fmt: skip
        return y, *(value.flatten() for value in sums)

    def normalise(self, y, scale, bias, shortcut):
        out = torch.empty_like(y)

        def build(graph, tensor):
            value = graph.bias(
                input=graph.scale(input=tensor["x"], scale=tensor["scale"]), bias=tensor["bias"]
            )
            if shortcut is not None:
                value = graph.add(a=value, b=tensor["shortcut"])
            return {"out": graph.relu(input=value)}

        given = {"x": y, **_vectors((scale, bias), torch.float32)}
        if shortcut is not None:
            given["shortcut"] = shortcut
        self._run(("normalise",), build, given, {"out": out})
        return out

    def mask(self, dz, y, scale, bias):
        out = torch.empty_like(y)

        def build(graph, tensor):
            value = graph.bias(
                input=graph.scale(input=tensor["x"], scale=tensor["scale"]), bias=tensor["bias"]
            )
            return {"out": graph.relu_backward(loss=tensor["dz"], input=value)}

        given = {"x": y, "dz": dz, **_vectors((scale, bias), torch.float32)}
        self._run(("mask",), build, given, {"out": out})
        return out

    def data_gradient(self, dy, weight, geometry, size):
        dx = _like(dy, size)

        def build(graph, tensor):
            options = _geometry(geometry, "data gradient")
            return {"dx": graph.conv_dgrad(loss=tensor["dy"], filter=tensor["weight"], **options)}

        self._run(("data", geometry), build, {"dy": dy, "weight": weight}, {"dx": dx})
        return dx

    def weight_gradient(self, dy, x, geometry, size, prologue):
        dw = _like(dy, size)

        def build(graph, tensor):
            image = self._prologue(graph, tensor, prologue is not None)
            options = _geometry(geometry, "weight gradient")
            return {"dw": graph.conv_wgrad(image=image, loss=tensor["dy"], **options)}

        given = {"x": x, "dy": dy, **_vectors(prologue, x.dtype)}
        self._run(("weight", geometry), build, given, {"dw": dw})
        return dw

    def _prologue(self, graph, tensor: dict[str, Any], wanted: bool):
        if not wanted:
            return tensor["x"]
        scaled = graph.scale(input=tensor["x"], scale=tensor["scale"])
        return graph.relu(input=graph.bias(input=scaled, bias=tensor["bias"]))

    def _run(self, key: tuple, build, given: dict[str, Tensor], made: dict[str, Tensor]) -> None:
        """Execute the graph that `build` makes from `given`, writing `made`."""
        tensors = {**given, **made}
        key += tuple((name, t.shape, t.stride(), t.dtype) for name, t in tensors.items())
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._cudnn.set_stream(handle=self._handle, stream=stream)
        if key not in self._graphs:
            self._graphs[key] = self._built(build, given, made, narrow=key[0] == "convolution")
        graph, handles, workspace = self._graphs[key]
        graph.execute(
            {handles[name]: tensor for name, tensor in tensors.items()},
            workspace,
            handle=self._handle,
        )

    def _built(self, build, given, made, *, narrow: bool):
        """A graph, its tensors by name and its workspace; `narrow`: half precision within, too."""
        cudnn = self._cudnn
        types = {
            torch.float16: cudnn.data_type.HALF,
            torch.bfloat16: cudnn.data_type.BFLOAT16,
            torch.float32: cudnn.data_type.FLOAT,
        }
        io_type = types[next(iter(given.values())).dtype]
        graph = cudnn.pygraph(
            io_data_type=io_type,
            # as NVIDIA's samples have it for each
            intermediate_data_type=io_type if narrow else cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=self._handle,
        )
        handles = {
            name: graph.tensor(
                name=name, dim=list(t.shape), stride=list(t.stride()), data_type=types[t.dtype]
            )
            for name, t in given.items()
        }
        for name, out in build(graph, handles).items():
            tensor = made[name]
            out.set_output(True).set_data_type(types[tensor.dtype])
            out.set_dim(list(tensor.shape)).set_stride(list(tensor.stride()))
            handles[name] = out
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
        size = max(1, graph.get_workspace_size())
        return graph, handles, torch.empty(size, dtype=torch.uint8, device=self._device)


def _like(tensor: Tensor, size: Sequence[int]) -> Tensor:
    return torch.empty(
        tuple(size), dtype=tensor.dtype, device=tensor.device, memory_format=torch.channels_last
    )


def _output_size(x: Tensor, weight: Tensor, geometry: Geometry) -> list[int]:
    spatial = [
        (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for extent, kernel, stride, padding, dilation in zip(
            x.shape[2:], weight.shape[2:], *geometry, strict=True
        )
    ]
    return [x.shape[0], weight.shape[0], *spatial]


def _vectors(pair: Prologue, dtype: torch.dtype) -> dict[str, Tensor]:
    if pair is None:
        return {}
    names = ("scale", "bias")
    return {n: v.to(dtype).reshape(1, -1, 1, 1) for n, v in zip(names, pair, strict=True)}


def _geometry(geometry: Geometry, name: str) -> dict[str, Any]:
    return {**{key: list(value) for key, value in geometry._asdict().items()}, "name": name}


class _Chain(torch.autograd.Function):
    """Layers in a row, ReLU after each, the shortcut before the last one's."""

    @staticmethod
    def forward(ctx, kernels: Kernels, layers, shortcut: bool, dtype, x: Tensor, *parameters):
        x = x.to(dtype, memory_format=torch.channels_last)
        weights = [
            w.to(dtype, memory_format=torch.channels_last) for w in parameters[: len(layers)]
        ]
        inputs, outputs, statistics, prologues = [x], [], [], [None]
        for layer, weight in zip(layers, weights, strict=True):
            y, total, squares = kernels.convolution(
                inputs[-1], weight, layer.geometry, prologues[-1]
            )
            mean, invstd, scale, bias = _finish(layer.bn, total, squares, y.numel() // y.shape[1])
            inputs.append(y)
            outputs.append(y)
            statistics.append((mean, invstd))
            prologues.append((scale, bias))
        out = kernels.normalise(outputs[-1], *prologues[-1], x if shortcut else None)
        ctx.kernels, ctx.layers, ctx.shortcut, ctx.dtype = kernels, layers, shortcut, x.dtype
        ctx.statistics, ctx.prologues = statistics, prologues
        ctx.save_for_backward(out, *inputs, *weights)
        return out

    @staticmethod
    def backward(ctx, dout: Tensor):
        count = len(ctx.layers)
        out, *saved = ctx.saved_tensors
        inputs, weights = saved[: count + 1], saved[count + 1 :]
        dout = dout.to(ctx.dtype, memory_format=torch.channels_last)
        g = shortcut = torch.ops.aten.threshold_backward(dout, out, 0)
        dweights, dgammas, dbetas = [], [], []
        for index in reversed(range(count)):
            layer, weight, x = ctx.layers[index], weights[index], inputs[index]
            mean, invstd = ctx.statistics[index]
            dy, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
                g, inputs[index + 1], layer.bn.weight, None, None, mean, invstd, True,
                layer.bn.eps, [True, True, True],
            )  # fmt: skip
            dgammas.insert(0, dgamma)
            dbetas.insert(0, dbeta)
            dweights.insert(
                0,
                ctx.kernels.weight_gradient(
                    dy, x, layer.geometry, weight.shape, ctx.prologues[index]
                ).float(),
            )
            if index == 0 and not ctx.needs_input_grad[4]:
                g = None
                break
            g = ctx.kernels.data_gradient(dy, weight, layer.geometry, x.shape)
            if index > 0:
                g = ctx.kernels.mask(g, x, *ctx.prologues[index])
        if g is not None and ctx.shortcut:
            g = g + shortcut
        return None, None, None, None, g, *dweights, *dgammas, *dbetas


def _finish(bn: nn.BatchNorm2d, total: Tensor, squares: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Mean, 1/std, scale and bias of a BN from its sums; updates its running statistics."""
    mean = total / rows
    variance = (squares / rows - mean * mean).clamp_(min=0)
    invstd = torch.rsqrt(variance + bn.eps)
    scale = bn.weight.detach() * invstd
    with torch.no_grad():
        bn.running_mean.lerp_(mean, bn.momentum)
        bn.running_var.lerp_(variance * (rows / (rows - 1)), bn.momentum)
        bn.num_batches_tracked += 1
    return mean, invstd, scale, bn.bias.detach() - mean * scale


def chain(module: nn.Module) -> tuple[list[Layer], bool] | str:
    """The layers of a module and whether it has a shortcut, or why it is none that is run here."""
    if hasattr(module, "layer_names"):
        if module.downsample is not None:
            return "it runs blocks with an identity shortcut"
        layers = [
            Layer(*(getattr(module, name) for name in names[:2])) for names in module.layer_names
        ]
        return layers, module.has_shortcut
    if {name for name, _ in module.named_children()} == {"conv", "bn"}:
        return [Layer(module.conv, module.bn)], False
    return f"it runs single layers and blocks, and the workload is a {type(module).__name__}"


def chain_step(workload: Workload, kernels: Kernels) -> Step:
    """The workload's step by these kernels."""
    module = make_module(workload, False, torch.channels_last)
    layers, shortcut = chain(module)
    parameters = [
        *(layer.convolution.weight for layer in layers),
        *(layer.bn.weight for layer in layers),
        *(layer.bn.bias for layer in layers),
    ]

    def forward(x: Tensor) -> Tensor:
        # the dtypes are chosen here, and statistics are fp32
        with torch.autocast(x.device.type, enabled=False):
            return _Chain.apply(kernels, layers, shortcut, workload.autocast, x, *parameters)

    return Step(workload, module, make_batches(workload, torch.channels_last), forward=forward)


def _make(workload: Workload) -> Step:
    return chain_step(workload, Engine(workload.device))


def _unavailable(workload: Workload) -> str | None:
    if workload.device.type != "cuda":
        return f"cuDNN needs a CUDA device, the workload is on {workload.device.type}"
    reason = import_reason("cudnn", install="nvidia-cudnn-frontend")
    if reason is not None:
        return reason
    if workload.inference or workload.autocast is None:
        return "the fused engines are for training in fp16 or bf16"
    with torch.device("meta"):
        found = chain(workload.build(False))
    return found if isinstance(found, str) else None


PEERS = (Peer(CUDNN, _make, _unavailable),)
