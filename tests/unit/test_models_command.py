"""`fastres models`: the counts are the exact ones, and the paper's figures stand beside them."""

from __future__ import annotations

import json
import re

import pytest
import torch

from fastres import cli, models
from fastres.models import paper
from fastres.models.vgg import vgg

# label: (multiply-adds in 10^9 to three decimals, parameters)
IMAGENET = {
    "plain18": (1.795, 11_515_688),
    "resnet18 A": (1.795, 11_515_688),
    "resnet18": (1.814, 11_689_512),
    "plain34": (3.644, 21_623_848),
    "resnet34 A": (3.644, 21_623_848),
    "resnet34": (3.664, 21_797_672),
    "resnet34 C": (3.831, 22_716_840),
    "resnet50 v1": (3.858, 25_557_032),
    "resnet50": (4.089, 25_557_032),
    "resnet101 v1": (7.570, 44_549_160),
    "resnet101": (7.801, 44_549_160),
    "resnet152 v1": (11.282, 60_192_808),
    "resnet152": (11.514, 60_192_808),
    "vgg16": (15.470, 138_357_544),
    "vgg19": (19.632, 143_667_240),
}
CIFAR = {
    "resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018,
    "resnet110": 1_727_962, "resnet1202": 19_421_274,
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The whole table as the command writes it, by label."""
    path = tmp_path_factory.mktemp("models") / "models.json"
    assert cli.main(["models", "--json", str(path)]) == 0
    return {row["label"]: row for row in json.loads(path.read_text())["models"]}


def test_exact_counts(table):
    found = {
        label: (round(table[label]["multiply_adds"] / 1e9, 3), table[label]["parameters"])
        for label in IMAGENET
    }
    assert found == IMAGENET
    assert {label: table[label]["parameters"] for label in CIFAR} == CIFAR


def test_every_network_has_a_row(table):
    assert {row["network"] for row in table.values()} == {*models.names(), "vgg16", "vgg19"}
    assert len(table) == len(list(paper.entries()))


def test_the_papers_figures_stand_on_the_networks_they_are_of(table):
    def said(label, what):
        return table[label]["paper"][what]

    assert said("resnet50 v1", "error_percent") == {"top1": 22.85, "top5": 6.71}
    assert said("resnet50", "error_percent") is None  # the paper strides in the first 1x1
    assert said("resnet34 C", "multi_scale_error_percent") == {"top1": 21.53, "top5": 5.60}
    assert said("plain18", "error_percent") == {"top1": 27.94, "top5": None}
    for row in table.values():
        flops, params = row["paper"]["multiply_adds_1e9"], row["paper"]["parameters_1e6"]
        # the paper rounds, and leaves the projections and the fully connected layers out at times
        if flops is not None:
            assert row["multiply_adds"] / 1e9 == pytest.approx(flops, rel=0.02)
        if params is not None:
            assert row["parameters"] / 1e6 == pytest.approx(params, rel=0.02)


def test_what_is_printed(capsys):
    assert cli.main(["models", "resnet50", "vgg16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["resnet50", "resnet50", "vgg16"]
    assert "3.858" in lines[3]
    assert "22.85 / 6.71" in lines[3]
    assert "20.74 / 5.25" in lines[3]


def test_another_image_size(capsys, tmp_path, monkeypatch):
    path = tmp_path / "models.json"
    assert cli.main(["models", "resnet18", "--image-size", "448", "--json", str(path)]) == 0
    row = json.loads(path.read_text())["models"][0]
    fc = 512 * 1000
    assert row["multiply_adds"] - fc == 4 * (models.count(models.resnet18(), 224)[1] - fc)
    few = [entry for entry in paper.entries() if entry.network in ("resnet18", "vgg16")]
    monkeypatch.setattr(paper, "entries", lambda: few)
    assert cli.main(["models", "--image-size", "64"]) == 0
    assert "vgg" not in capsys.readouterr().out  # its first fc takes 224 pixels only


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet21"], "names must be among .*resnet20.*, got 'resnet21'"),
        (["--image-size", "16"], "image_size must be at least 32, got 16"),
        (["vgg16", "--image-size", "64"], "image_size must be 224 for VGG"),
        (["resnet18", "--json", "/dev/null/models.json"], "cannot write json to"),
    ],
)
def test_bad_input(capsys, arguments, message):
    assert cli.main(["models", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastres models: ")
    assert re.search(message, line), line


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_vgg_is_torchvisions(name):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, name)(), vgg(name)
    shapes = [[tuple(p.shape) for p in model.parameters()] for model in (theirs, ours)]
    assert shapes[0] == shapes[1]
    assert models.count(ours, 224) == models.count(theirs, 224)


def test_vgg_has_two_sizes():
    with pytest.raises(ValueError, match="name must be one of vgg16, vgg19, got 'vgg11'"):
        vgg("vgg11")
