"""fastres.resnet50(fused=True) below torchvision's detection and segmentation heads, trained.

Each test trains torchvision's ResNet-50 and ours from the same weights on the same synthetic boxes
or masks, in fp64: the losses, gradients and outputs are the same at every step.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from interop.networks import CLOSE, assert_close, fused_path, torchvision
from interop.works_with import works_with
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.segmentation import fcn
from torchvision.ops import FrozenBatchNorm2d

import fastres
from fastres.layers import Bottleneck

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backbone.md"
# after a step of training the two have taken the other's rounding in once more
TRAINED = {"rtol": 1e-6, "atol": 1e-8}
LAYERS = {f"layer{level}": str(level) for level in (1, 2, 3, 4)}


def backbones(**options) -> tuple[nn.Module, nn.Module]:
    """torchvision's ResNet-50 and ours, fused, with the same weights; BN that has seen images."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None, **options)
    for name, values in theirs.named_buffers():
        if name.endswith("running_var"):
            nn.init.uniform_(values, 0.8, 1.4)
        elif name.endswith("running_mean"):
            nn.init.normal_(values, std=0.1)
    for name, values in theirs.state_dict().items():
        # each block adds a little: as trained, the features keep their size over 16 of them
        if name.endswith("bn3.weight"):
            values.fill_(0.2)
    ours = fastres.resnet50(fused=True, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def freeze(model: nn.Module) -> nn.Module:
    """BN keeps its running statistics inside a network that trains; gamma and beta learn."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def pair(make: Callable[[nn.Module], nn.Module], **options) -> list[nn.Module]:
    """The heads of `make` on both backbones, from the same weights, in fp64."""
    models = []
    for backbone in backbones(**options):
        torch.manual_seed(1)
        models.append(make(backbone).double().train())
    models[1].load_state_dict(models[0].state_dict())
    return models


def train(model: nn.Module, loss_of: Callable[[nn.Module], Tensor], steps: int, lr: float):
    """Losses of some steps of SGD, and the gradients of the last."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=lr, momentum=0.9)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)  # Faster R-CNN draws the boxes that it learns from
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: p.grad for name, p in model.named_parameters()}


def assert_trained_alike(theirs: nn.Module, ours: nn.Module, loss_of, steps: int, lr: float):
    """Also that the loss falls, and that the fused operators have run."""
    losses, gradients = train(theirs, loss_of, steps, lr)
    with fused_path():
        found, found_gradients = train(ours, loss_of, steps, lr)
    assert found == pytest.approx(losses, rel=1e-7)
    assert losses[-1] < losses[0]
    assert_close(found_gradients, gradients, **TRAINED)
    assert_close(ours.state_dict(), theirs.state_dict(), **TRAINED)


def squares(n: int = 2, size: int = 64) -> tuple[Tensor, Tensor]:
    """Noise images fp64 [n, 3, size, size] with a bright square each; its box, [n, 4]."""
    random = torch.Generator().manual_seed(2)
    images = torch.rand(n, 3, size, size, generator=random, dtype=torch.float64) / 4
    boxes = torch.empty(n, 4, dtype=torch.float64)
    for index in range(n):
        top, left = torch.randint(0, size // 2, (2,), generator=random).tolist()
        side = size // 4 + 4 * index
        images[index, :, top : top + side, left : left + side] += 0.7
        boxes[index] = torch.tensor([left, top, left + side, top + side])
    return images, boxes


@works_with("`resnet50(fused=True)` in torchvision's Faster R-CNN with an FPN, BN frozen, trained")
def test_detection():
    def detector(backbone: nn.Module) -> nn.Module:
        body = _resnet_fpn_extractor(backbone, trainable_layers=3)
        return FasterRCNN(
            body, num_classes=2, min_size=40, max_size=40, box_detections_per_img=5,
            rpn_post_nms_top_n_train=40, rpn_post_nms_top_n_test=20, box_batch_size_per_image=16,
        )  # fmt: skip

    theirs, ours = (freeze(model) for model in pair(detector))
    paths = [row.path for row in fastres.explain(ours).rows]
    assert paths == ["whole block"] * 16
    fastres.fuse(ours)  # torchvision's getter calls the stem layer by layer, until it is fused
    paths = [row.path for row in fastres.explain(ours).rows]
    assert paths == ["whole stem", *["whole block"] * 16]
    statistics = {key: value.clone() for key, value in ours.backbone.body.named_buffers()}

    images, boxes = squares(size=40)
    targets = [{"boxes": box[None], "labels": torch.tensor([1])} for box in boxes]
    assert_trained_alike(
        theirs, ours, lambda model: sum(model(list(images), targets).values()), 2, 0.002
    )
    assert_close(dict(ours.backbone.body.named_buffers()), statistics, rtol=0, atol=0)
    body = ours.backbone.body
    assert all(p.grad is None for p in [*body.conv1.parameters(), *body.layer1.parameters()])
    assert all(p.grad is not None for p in body.layer2.parameters())

    with torch.no_grad():
        expected, found = (model.eval()(list(images)) for model in (theirs, ours))
    for one, want in zip(found, expected, strict=True):
        assert_close(one, want, **TRAINED)


@works_with("`resnet50(fused=True)` with dilation below torchvision's FCN head, trained")
def test_segmentation():
    def segmenter(backbone: nn.Module) -> nn.Module:
        model = fcn._fcn_resnet(backbone, 2, True)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model

    theirs, ours = pair(segmenter, replace_stride_with_dilation=[False, True, True])
    for model in (theirs, ours):
        freeze(model.backbone)  # the heads' BN learns
    fastres.fuse(ours)  # the stem and the heads as well
    images, boxes = squares(size=40)
    masks = torch.zeros(2, 40, 40, dtype=torch.int64)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1

    def loss_of(model: nn.Module) -> Tensor:
        out = model(images)
        assert out["out"].shape == (2, 2, 40, 40)
        entropy = nn.functional.cross_entropy
        return entropy(out["out"], masks) + 0.5 * entropy(out["aux"], masks)

    assert_trained_alike(theirs, ours, loss_of, 2, 0.01)


@works_with("features of every level of `resnet50(fused=True)`, with dilation, and their gradients")
@pytest.mark.parametrize("dilation", [None, [False, False, True], [False, True, True]])
def test_features_of_every_level(dilation):
    """Losses on all levels at once: a feature tapped between two blocks gets its own gradient."""
    images, _ = squares(1)
    results = []
    options = {"norm_layer": FrozenBatchNorm2d} if dilation is None else {}
    for backbone in backbones(replace_stride_with_dilation=dilation, **options):
        model = IntermediateLayerGetter(backbone.double().train(), dict(LAYERS))
        features = model(images)
        sum(
            (one * torch.linspace(-1, 1, one.numel(), dtype=one.dtype).view_as(one)).mean()
            for one in features.values()
        ).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append(({key: one.detach() for key, one in features.items()}, gradients))
    for found, expected in zip(results[1], results[0], strict=True):
        assert_close(found, expected, **CLOSE)
    halvings = {None: (2, 3, 4, 5), 2: (2, 3, 4, 4), 1: (2, 3, 3, 3)}
    first = None if dilation is None else dilation.index(True)
    assert [one.shape[-1] for one in results[1][0].values()] == [64 >> n for n in halvings[first]]


def test_in_single_precision_the_two_differ_by_rounding():
    """One step of the detector's body in fp32, against torchvision's in fp64."""
    images, _ = squares(1)
    outputs = []
    for number, backbone in enumerate((*backbones(norm_layer=FrozenBatchNorm2d), None)):
        if backbone is None:
            backbone = backbones(norm_layer=FrozenBatchNorm2d)[0].double()
        dtype = torch.float64 if number == 2 else torch.float32
        model = IntermediateLayerGetter(backbone, dict(LAYERS))
        outputs.append([one.detach().double() for one in model(images.to(dtype)).values()])
    for theirs, ours, exact in zip(*outputs, strict=True):
        assert (ours - exact).norm() <= 2 * (theirs - exact).norm() + 1e-6 * exact.norm()


def test_the_pages_script_runs(capsys):
    """Every block of Python in docs/backbone.md in turn, and what the page says they print."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    namespace: dict[str, object] = {}
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, str(PAGE), "exec"), namespace)
    printed = capsys.readouterr().out.split()
    shown = " ".join(text for kind, text in blocks if not kind).split()
    assert len(printed) == len(shown)
    for ours, said in zip(printed, shown, strict=True):
        number = re.fullmatch(r"\d+\.\d+", said)
        # losses depend on the processor's sums in their last digits
        assert float(ours) == pytest.approx(float(said), rel=0.05) if number else ours == said


def test_ours_are_bottlenecks_of_our_own():
    assert isinstance(fastres.resnet50(fused=True).layer1[0], Bottleneck)
