"""`explain` says what a forward then does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastres
from fastres import backends


def launched(operator: str) -> int:
    return sum(n for key, n in backends.counts().items() if key.startswith(f"{operator}:"))


def paths(model: nn.Module) -> dict[str, str]:
    return {row.name: row.path for row in fastres.explain(model).rows}


def test_an_untouched_network_runs_whole_blocks():
    found = fastres.explain(fastres.resnet50(fused=True))
    assert {row.path for row in found.rows} == {"whole block", "whole stem"}
    assert len(found.rows) == 17
    text = str(found)
    assert (
        "layer1.1  Bottleneck  whole block  moment form from N*H*W = 768; 2 of 3 in a run" in text
    )
    assert "16 of 16 blocks run whole; backend" in text
    assert repr(found) == text


@pytest.mark.parametrize(
    ("touch", "path", "why"),
    [
        (lambda b: b.conv2.register_forward_hook(lambda *_: None), "operators", "conv2 has a hook"),
        (lambda b: setattr(b, "bn1", nn.GroupNorm(4, 16)), "operators", "bn1 is a GroupNorm"),
        (lambda b: setattr(b, "relu", nn.GELU()), "modules", "relu is a GELU"),
        (lambda b: setattr(b, "fused", False), "modules", "made with fused=False"),
        (
            lambda b: torch.nn.utils.parametrizations.weight_norm(b.conv1),
            "operators",
            "conv1 is a ParametrizedConv2d",
        ),
    ],
)
def test_a_touched_block_is_named(touch, path, why):
    model = fastres.resnet20(fused=True)
    touch(model.layer1[1])
    rows = {row.name: row for row in fastres.explain(model).rows}
    assert rows["layer1.1"].path == path
    assert rows["layer1.1"].why == why
    assert rows["layer1.0"].path == rows["layer1.2"].path == "whole block"
    backends.reset_counts()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    whole = sum(row.path == "whole block" for row in rows.values())
    assert launched("chain_backward") == 2 * whole


def test_the_stem_is_explained():
    model = fastres.resnet18(fused=True)
    assert paths(model)["conv1"] == "whole stem"
    model.maxpool.register_forward_hook(lambda *_: None)
    rows = fastres.explain(model).rows
    assert (rows[0].path, rows[0].why) == ("operators", "maxpool has a hook")
    assert paths(fastres.resnet18())["conv1"] == "modules"


def test_errors():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        fastres.explain(3)
    with pytest.raises(ValueError, match="must hold a block that fastres knows"):
        fastres.explain(nn.Linear(2, 2))
