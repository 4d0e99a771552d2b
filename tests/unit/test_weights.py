"""`weights=`: torchvision's enums and names (without a network here), and files."""

from __future__ import annotations

import sys

import pytest
import torch

from fastres import models


def same(state: dict, other: dict) -> bool:
    return list(state) == list(other) and all(torch.equal(state[key], other[key]) for key in state)


@pytest.fixture(scope="module")
def trained() -> dict:
    """A state_dict of a ResNet-18 that no seed gives."""
    torch.manual_seed(7)
    return models.resnet18(zero_init_residual=True).state_dict()


@pytest.fixture
def downloads(monkeypatch, trained):
    """Replaces torchvision's download; collects (enum member, progress)."""
    api = pytest.importorskip("torchvision.models._api")
    asked = []

    def get_state_dict(self, progress=True, check_hash=False):
        assert check_hash
        asked.append((str(self), progress))
        return trained

    monkeypatch.setattr(api.WeightsEnum, "get_state_dict", get_state_dict)
    return asked


@pytest.mark.parametrize(
    "given", ["IMAGENET1K_V1", "DEFAULT", "ResNet18_Weights.IMAGENET1K_V1", "enum"]
)
def test_published(given, downloads, trained):
    from torchvision.models import ResNet18_Weights

    weights = ResNet18_Weights.IMAGENET1K_V1 if given == "enum" else given
    model = models.resnet18(weights=weights, progress=False)
    assert same(model.state_dict(), trained)
    assert downloads == [("ResNet18_Weights.IMAGENET1K_V1", False)]


def test_default_is_torchvisions_default():
    torchvision = pytest.importorskip("torchvision")
    from fastres.models.weights import resolve

    assert resolve("DEFAULT", "resnet50") is torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    for name in models.names():
        if hasattr(torchvision.models, name):
            enum = torchvision.models.get_model_weights(name)
            assert resolve("DEFAULT", name) is enum.DEFAULT
            assert resolve(f"{enum.__name__}.DEFAULT", name) is enum.DEFAULT


def test_classes_of_published_weights(downloads):
    assert models.resnet18(weights="DEFAULT", num_classes=1000).fc.out_features == 1000
    with pytest.raises(ValueError, match="'num_classes' expected value 1000 but got 10 instead"):
        models.resnet18(weights="DEFAULT", num_classes=10)
    assert len(downloads) == 1


@pytest.mark.parametrize(
    ("name", "weights", "options", "error", "message"),
    [
        (
            "resnet18",
            "IMAGENET1K_V2",
            {},
            ValueError,
            r"one of \['IMAGENET1K_V1', .*got IMAGENET1K_V2",
        ),
        (
            "resnet18",
            "ResNet50_Weights.DEFAULT",
            {},
            TypeError,
            "must be a ResNet18_Weights, got Res",
        ),
        ("plain18", "DEFAULT", {}, ValueError, "no published weights for plain18"),
        ("resnet20", "DEFAULT", {}, ValueError, "no published weights for resnet20"),
        ("resnet50", "DEFAULT", {"variant": "v1"}, ValueError, "trained with variant 'v1.5', got"),
        ("resnet18", 3, {}, TypeError, "weights must be None, .* got int"),
        ("resnet18", "IMAGENET", {}, FileNotFoundError, "or an existing file, got 'IMAGENET'"),
    ],
)
def test_bad_weights(name, weights, options, error, message, downloads):
    with pytest.raises(error, match=message):
        models.create(name, weights=weights, **options)
    assert downloads == []


def test_enum_of_another_network(downloads):
    from torchvision.models import ResNet50_Weights

    with pytest.raises(
        TypeError, match=r"must be a ResNet18_Weights, got ResNet50_Weights\.IMAGENET"
    ):
        models.resnet18(weights=ResNet50_Weights.DEFAULT)


def test_published_weights_fit_the_network(downloads):
    with pytest.raises(ValueError, match=r"ResNet18_Weights.IMAGENET1K_V1 belongs to another net"):
        models.resnet18(weights="DEFAULT", shortcut="A")


def test_variant_does_not_matter_to_basic_blocks(downloads, trained):
    model = models.resnet18(weights="DEFAULT", variant="v1")
    assert same(model.state_dict(), trained)


def test_without_torchvision(monkeypatch, tmp_path, trained):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    path = tmp_path / "weights.pt"
    torch.save(trained, path)
    assert same(models.resnet18(weights=path).state_dict(), trained)
    with pytest.raises(ModuleNotFoundError, match="torchvision, which is not installed"):
        models.resnet18(weights="DEFAULT")


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("key", [None, "model"])
def test_file(tmp_path, trained, key, as_text):
    path = tmp_path / "weights.pt"
    torch.save(trained if key is None else {key: trained, "epoch": 3}, path)
    model = models.resnet18(weights=str(path) if as_text else path, fused=True)
    assert same(model.state_dict(), trained)


def test_file_for_the_cifar_networks(tmp_path):
    state = models.resnet20(num_classes=4).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    loaded = models.create("resnet20", weights=tmp_path / "weights.pt", num_classes=4)
    assert same(loaded.state_dict(), state)


def test_file_of_another_network(tmp_path):
    path = tmp_path / "other.pt"
    torch.save(models.resnet20(shortcut="B").state_dict(), path)
    with pytest.raises(ValueError, match="belongs to another network") as caught:
        models.resnet32(weights=path)
    assert str(caught.value) == (
        f"{path} belongs to another network; missing: layer1.3.conv1.weight, layer1.3.bn1.weight, "
        "layer1.3.bn1.bias and 69 more; not in this network: layer2.0.downsample.0.weight, "
        "layer2.0.downsample.1.weight, layer2.0.downsample.1.bias and 9 more"
    )
    with pytest.raises(
        ValueError, match=r"other shapes: fc\.weight \[7, 64\] \(got \[10, 64\]\), fc\.bias \[7\]"
    ):
        models.resnet20(weights=path, num_classes=7, shortcut="B")


class Unwelcome:
    """A class that a file of weights has no business to name."""


@pytest.mark.parametrize("content", ["empty", "text", "truncated", "tensor", "no tensors", "code"])
def test_file_of_something_else(tmp_path, trained, content):
    path = tmp_path / "weights.pt"
    if content in ("empty", "text"):
        path.write_text("" if content == "empty" else "hello, weights")
    elif content == "truncated":
        torch.save(trained, path)
        path.write_bytes(path.read_bytes()[:100_000])
    else:
        torch.save(
            {
                "tensor": torch.ones(3),
                "no tensors": {"model": {"lr": 0.1}},
                "code": Unwelcome(),
            }[content],
            path,
        )
    with pytest.raises(ValueError, match=r"weights\.pt (is not a file of weights|must hold a)"):
        models.resnet18(weights=path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="existing file"):
        models.resnet18(weights=tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match="existing file"):
        models.resnet18(weights=tmp_path)
