"""timm's networks: state_dicts both ways, and the same scores."""

from __future__ import annotations

import pytest
import torch

from fastres import models

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_state_dict_both_ways(name, fused):
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=12).double().eval()
    ours = models.create(name, num_classes=12, fused=fused).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
        ours.fc.weight.add_(1)
        ours.bn1.num_batches_tracked.add_(3)
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    assert theirs.bn1.num_batches_tracked == 3
