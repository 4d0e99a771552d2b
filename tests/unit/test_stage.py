"""Blocks in a row: what they hand over to each other stays between them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastres
from fastres import backends
from fastres.layers import Bottleneck, Stage

EXACT = {"rtol": 1e-9, "atol": 1e-10}


def launched(operator: str) -> int:
    return sum(n for key, n in backends.counts().items() if key.startswith(f"{operator}:"))


def stage(fused: bool, blocks: int = 3) -> Stage:
    torch.manual_seed(1)
    made = Stage(*(Bottleneck(16, 4, fused=fused, memory="low") for _ in range(blocks)))
    return made.double()


def images() -> torch.Tensor:
    return torch.randn(2, 16, 6, 5, dtype=torch.float64, requires_grad=True)


def test_a_run_hands_over_the_next_convolution_and_the_mask():
    made, x = stage(True), images()
    backends.reset_counts()
    made(x).sum().backward()
    assert launched("expand_reduce") == 2
    assert launched("expand") == 1
    assert [len(run) for run in made.runs()] == [3]


def test_a_tapped_feature_gets_its_true_gradient():
    """A hook between two blocks breaks the run there: what it sees is PyTorch's gradient."""
    seen = {}

    def watch(name):
        def hook(module, inputs, output):
            output.register_hook(lambda g: seen.__setitem__(name, g.clone()))

        return hook

    for name, fused in (("ours", True), ("theirs", False)):
        made = stage(fused)
        made[0].register_forward_hook(watch(name))
        x = images() if name == "ours" else x.detach().clone().requires_grad_()  # noqa: F821
        if fused:
            assert [len(run) for run in made.runs()] == [1, 2]
        out = made(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    torch.testing.assert_close(seen["ours"], seen["theirs"], **EXACT)
    assert (seen["ours"] != 0).all()


def test_a_stage_is_a_sequential():
    made = stage(True)
    plain = nn.Sequential(*copy.deepcopy(list(made)))
    assert list(made.state_dict()) == list(plain.state_dict())
    assert isinstance(made[1:], Stage)
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(x), plain.eval()(x), **EXACT)


def test_a_block_of_another_kind_runs_by_itself():
    made = stage(True)
    made[1] = nn.Identity()
    assert [len(run) for run in made.runs()] == [1, 1, 1]
    made[0].memory = "fast"
    made[1] = copy.deepcopy(made[2])
    assert [len(run) for run in made.runs()] == [1, 2]


def test_a_subclass_keeps_its_own_forward():
    class Twice(Bottleneck):
        def forward(self, x):
            return super().forward(x) * 2

    made = Stage(Bottleneck(16, 4, fused=True), Twice(16, 4, fused=True)).double()
    assert [len(run) for run in made.runs()] == [1, 1]
    x = images()
    torch.testing.assert_close(made(x), made[1](made[0](x)), rtol=0, atol=0)


def test_features_by_name_are_found_in_a_trace():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = fastres.resnet20(fused=True).eval()
    found = extraction.create_feature_extractor(model, {"layer1": "a", "layer2.0": "b"})
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        features = found(x)
        first = model.layer1(fastres.conv_bn_act(
            x, model.conv1.weight, fastres.BatchNormState.of(model.bn1), padding=1
        ))  # fmt: skip
        torch.testing.assert_close(features["a"], first)
        torch.testing.assert_close(features["b"], model.layer2[0](first))
