"""ONNX Runtime: the network in eval mode, exported and run by its CPU or CUDA provider.

BN is folded by the exporter and ONNX Runtime themselves. In half precision the exported weights
and activations have that dtype and the network begins and ends with a cast, because images come
and scores go in fp32. Inputs are NCHW, ONNX Runtime's layout; it reads and writes PyTorch's memory.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..workload import InferenceStep, Step, Workload, make_batches
from .library import import_reason, quietly
from .peer import Peer, make_module, not_inference

ONNX_RUNTIME = "ONNX Runtime"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class _Cast(nn.Module):
    """fp32 images to fp32 scores through a network in another dtype."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.to(self.dtype)).float()


class OnnxForward:
    """Calling it runs the exported network on an fp32 tensor; the output is overwritten by the
    next call.

    Args:
        module: in eval mode.
        example: a contiguous input of the size and on the device that it is to run on.
        dtype: of weights and activations.

    Raises:
        RuntimeError: ONNX Runtime cannot use the device.
    """

    def __init__(self, module: nn.Module, example: Tensor, dtype: torch.dtype) -> None:
        runtime = quietly("onnxruntime")
        module = copy.deepcopy(module).to("cpu", memory_format=torch.contiguous_format).eval()
        with torch.no_grad():
            output = module(example.cpu())
        self.output = torch.empty_like(output, device=example.device)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        # threads that went on spinning would take the time of whatever is measured next
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = runtime.InferenceSession(
            _export(_Cast(module, dtype), example.cpu(), 22 if dtype is torch.bfloat16 else None),
            options,
            providers=_providers(example.device),
        )
        wanted, used = _PROVIDERS[example.device.type], self._session.get_providers()
        if wanted not in used:
            # without its libraries a provider is left out in silence
            raise RuntimeError(f"onnxruntime could not start its {wanted}, only {', '.join(used)}")
        self._names = (self._session.get_inputs()[0].name, self._session.get_outputs()[0].name)

    def __call__(self, x: Tensor) -> Tensor:
        binding = self._session.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, self._names[0], x),
            (binding.bind_output, self._names[1], self.output),
        ):
            place = (tensor.device.type, tensor.device.index or 0)
            bind(name, *place, _float32(), tuple(tensor.shape), tensor.data_ptr())
        self._session.run_with_iobinding(binding)
        return self.output


def _float32():
    import numpy as np

    return np.float32


def _providers(device: torch.device) -> list:
    name = _PROVIDERS[device.type]
    if device.type == "cpu":
        return [name]
    stream = torch.cuda.current_stream(device).cuda_stream
    return [(name, {"device_id": device.index or 0, "user_compute_stream": str(stream)})]


def _export(module: nn.Module, example: Tensor, opset: int | None) -> bytes:
    with warnings.catch_warnings(), _silent():
        warnings.simplefilter("ignore")
        # before opset 22 a convolution has no bf16
        program = torch.onnx.export(
            module, (example,), dynamo=True, verbose=False, opset_version=opset
        )
    return program.model_proto.SerializeToString()


@contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _make(workload: Workload) -> Step:
    module = make_module(workload, False, torch.contiguous_format).eval()
    batches = make_batches(workload, torch.contiguous_format)
    forward = OnnxForward(module, batches[0].inputs[0], workload.autocast or torch.float32)
    return InferenceStep(workload, module, batches, forward=forward)


def _unavailable(workload: Workload) -> str | None:
    if not workload.inference or len(workload.shapes) != 1:
        return not_inference(workload) or "it runs networks of one input"
    if workload.autocast is torch.bfloat16 and workload.device.type == "cpu":
        return "onnxruntime's CPU provider has no bf16 convolution"
    for package in ("onnxruntime", "onnx", "onnxscript"):
        reason = import_reason(package)
        if reason is not None:
            return reason
    found = quietly("onnxruntime").get_available_providers()
    wanted = _PROVIDERS.get(workload.device.type)
    if wanted not in found:
        return f"onnxruntime has no {wanted}: {', '.join(found)} (pip install onnxruntime-gpu)"
    return None


PEERS = (Peer(ONNX_RUNTIME, _make, _unavailable),)
