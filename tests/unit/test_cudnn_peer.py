"""What is around cuDNN's fused engines, with PyTorch in their place: the engines need a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastres.bench import Comparison, cases
from fastres.bench.compare import MEASURED, REFUSED
from fastres.bench.peers import CUDNN, PEERS, Peer
from fastres.bench.peers.cudnn_frontend import chain, chain_step
from fastres.layers import BasicBlock

WORKLOADS = {
    "layer": cases.convolution("layer2 3x3 stride 2", 1, "bf16"),
    "images": cases.convolution("conv1 7x7", 1, "fp16"),
    "bottleneck": cases.block("bottleneck", 4, 8, 16, "bf16"),
    "basic": cases.block("basic", 4, 8, 16, "fp16"),
}


def wide(vector):
    return vector.view(1, -1, 1, 1)


class PlainKernels:
    """The fused engines' mathematics by PyTorch, in fp32 between the tensors in memory."""

    def prologue(self, x, pair):
        if pair is None:
            return x.float()
        scale, bias = (wide(vector.to(x.dtype)) for vector in pair)
        return torch.relu(x.float() * scale + bias).to(x.dtype).float()

    def convolution(self, x, weight, geometry, prologue):
        y = F.conv2d(self.prologue(x, prologue), weight.float(), None, *geometry)
        out = y.to(x.dtype).contiguous(memory_format=torch.channels_last)
        return out, y.sum((0, 2, 3)), (y * y).sum((0, 2, 3))

    def normalise(self, y, scale, bias, shortcut):
        value = y.float() * wide(scale) + wide(bias)
        return torch.relu(value if shortcut is None else value + shortcut).to(y.dtype)

    def mask(self, dz, y, scale, bias):
        return torch.where(y.float() * wide(scale) + wide(bias) > 0, dz, 0)

    def data_gradient(self, dy, weight, geometry, size):
        return torch.nn.grad.conv2d_input(size, weight.float(), dy.float(), *geometry).to(dy.dtype)

    def weight_gradient(self, dy, x, geometry, size, prologue):
        image = self.prologue(x, prologue)
        return torch.nn.grad.conv2d_weight(image, size, dy.float(), *geometry).to(dy.dtype)


class WithoutMask(PlainKernels):
    def mask(self, dz, y, scale, bias):
        return dz


class HalfTheSquares(PlainKernels):
    def convolution(self, *arguments):
        y, total, squares = super().convolution(*arguments)
        return y, total, squares / 2


def entry_of(workload, kernels):
    comparison = Comparison(workload)
    peer = Peer("kernels", lambda workload: chain_step(workload, kernels), lambda workload: None)
    comparison.prepare(peer)
    comparison.check()
    return comparison.entries["kernels"]


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_the_layers_around_the_engines_agree(name):
    entry = entry_of(WORKLOADS[name], PlainKernels())
    assert entry.status == MEASURED, entry.reason


@pytest.mark.parametrize("kernels", [WithoutMask(), HalfTheSquares()])
def test_an_engine_with_an_error_is_refused(kernels):
    assert entry_of(WORKLOADS["bottleneck"], kernels).status == REFUSED


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", list(WORKLOADS))
def test_without_a_gpu_it_says_so(name):
    assert "CUDA device" in PEERS[CUDNN].unavailable(WORKLOADS[name])


def test_what_is_no_chain_of_layers_is_named():
    with torch.device("meta"):
        layers, shortcut = chain(WORKLOADS["bottleneck"].build(False))
        assert (len(layers), shortcut) == (3, True)
        assert "CifarResNet" in chain(cases.network("resnet20", 1, 16).build(False))
        strided = BasicBlock(16, 16, 2, downsample=torch.nn.Conv2d(16, 16, 1, 2))
        assert "identity shortcut" in chain(strided)
