"""Which files `fastres eval` takes, and what it says of the others."""

from __future__ import annotations

import io
import re
import tarfile

import pytest
import torch
from evaluation_runs import CLASSES, CROP, evaluate, make_folder, network, save_checkpoint

from fastres import cli, models
from fastres.evaluation.batches import load
from fastres.evaluation.images import TensorImages, open_folder, open_shards, read_classes
from fastres.evaluation.networks import How
from fastres.evaluation.networks import load as load_network
from fastres.evaluation.protocols import make
from fastres.training.errors import CheckpointError, DataError, UsageError

torchvision = pytest.importorskip("torchvision")

PLAIN = How(torch.device("cpu"), None, fused=False, optimize=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


def fails(capsys, *arguments) -> str:
    """The one line that `fastres eval` ends with, and code 2."""
    options = ["eval", "--no-fused", "--device", "cpu", *map(str, arguments)]
    assert cli.main(options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_state_dict_needs_its_networks_name(folder, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    torch.save(network().state_dict(), path)
    data = ["--data", "imagefolder", "--data-dir", folder]
    result = evaluate(tmp_path, "--checkpoint", path, "--model", "resnet20", *data, "--crop", CROP)
    config = {"data_dir": str(folder)}
    same = save_checkpoint(tmp_path / "net.pt", network(), config=config)
    assert result["loss"] == evaluate(tmp_path, "--checkpoint", same)["loss"]
    assert "holds a state_dict and no options: give --model" in fails(
        capsys, "--checkpoint", path, *data
    )
    assert "a state_dict says nothing of its data: give --data" in fails(
        capsys, "--checkpoint", path, "--model", "resnet20"
    )
    assert "model 'resnet21': name must be one of" in fails(
        capsys, "--checkpoint", path, "--model", "resnet21", *data
    )
    assert re.search(
        "weights.pth belongs to another network", fails(
            capsys, "--checkpoint", path, "--model", "resnet32", *data
        )
    )  # fmt: skip


def test_torchvisions_weights_and_an_ensemble_of_two_depths(folder, tmp_path):
    """Whole files of torchvision's, one under DistributedDataParallel's prefix."""
    torch.manual_seed(0)
    small, large = (make(num_classes=6) for make in (
        torchvision.models.resnet18, torchvision.models.resnet34,
    ))  # fmt: skip
    torch.save(small.state_dict(), tmp_path / "18.pth")
    wrapped = {f"module.{key}": value for key, value in large.state_dict().items()}
    torch.save({"model": wrapped, "epoch": 3}, tmp_path / "34.pth")
    result = evaluate(
        tmp_path, "--checkpoint", tmp_path / "18.pth", tmp_path / "34.pth", "--crop", "32",
        "--model", "resnet18", "resnet34", "--data", "imagefolder", "--data-dir", folder,
    )  # fmt: skip
    assert [one["model"] for one in result["networks"]] == ["resnet18", "resnet34"]
    found = load_network(tmp_path / "34.pth", PLAIN, "resnet34")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found.module(x), large.eval()(x))


def test_a_checkpoint_makes_its_network_as_it_was_trained(tmp_path):
    torch.manual_seed(0)
    model = models.resnet50(num_classes=3, variant="v1", shortcut="C")
    config = {"model": "resnet50", "variant": "v1", "shortcut": "C"}
    path = save_checkpoint(tmp_path / "net.pt", model, config=config, classes=["a", "b", "c"])
    found = load_network(path, PLAIN)
    assert found.module.layer2[0].conv1.stride == (2, 2)
    assert (found.num_classes, found.classes) == (3, ("a", "b", "c"))
    assert not found.module.training
    with pytest.raises(UsageError, match=r"was trained with variant 'v1', got 'v1\.5'"):
        load_network(path, PLAIN, options={"variant": "v1.5"})
    with pytest.raises(UsageError, match="was trained with model 'resnet50', got 'resnet18'"):
        load_network(path, PLAIN, "resnet18")


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "list", "missing", "no fc"])
def test_files_that_hold_no_network(tmp_path, damage):
    path = save_checkpoint(tmp_path / "net.pt", network())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage in ("text", "empty"):
        path.write_text("weights" if damage == "text" else "")
    elif damage == "list":
        torch.save([1, 2], path)
    elif damage == "no fc":
        torch.save({"head.weight": torch.ones(2, 2)}, path)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"net\.pt"):
        load_network(path, PLAIN, "resnet20")


def test_an_ensemble_must_fit_together(folder, tmp_path, capsys):
    config = {"data_dir": str(folder)}
    one = save_checkpoint(tmp_path / "one.pt", network(), config=config)
    for changes, message in (
        (
            {"config": {"image_size": 32}},
            r"the size of training \(or give --crop\) must be the same",
        ),
        ({"classes": list("abcdef")}, "the folder 'ant' is none of the 6 classes"),
    ):
        other = save_checkpoint(tmp_path / "other.pt", network(), **changes)
        line = fails(capsys, "--checkpoint", one, other)
        assert re.search(message, line), line
    wide = save_checkpoint(tmp_path / "wide.pt", network(classes=7))
    line = fails(capsys, "--checkpoint", one, wide)
    assert "the number of outputs must be the same in every checkpoint" in line
    stored = [
        save_checkpoint(tmp_path / name, network(), classes=order, config=config)
        for name, order in (("up.pt", CLASSES), ("down.pt", CLASSES[::-1]))
    ]
    line = fails(capsys, "--checkpoint", *stored)
    assert "the classes must be the same in every checkpoint" in line
    assert "ant, bee, cat and 3 more" in line


def test_a_checkpoint_of_other_data_needs_a_mean(folder, tmp_path, capsys):
    path = save_checkpoint(tmp_path / "net.pt", network(), config={"data": "cifar10"})
    options = ["--checkpoint", path, "--data", "imagefolder", "--data-dir", folder]
    assert "stores no mean and was trained on 'cifar10'" in fails(capsys, *options, "--crop", CROP)
    evaluate(tmp_path, *options, "--crop", CROP, "--mean", "0.5,0.5,0.5")


def test_the_moving_average_of_the_weights_is_taken_where_there_is_one(folder, tmp_path, capsys):
    config = {"data_dir": str(folder)}
    average = {"model": network(seed=1).state_dict(), "updates": 9}
    both = save_checkpoint(tmp_path / "both.pt", network(), average=average, config=config)
    last = save_checkpoint(tmp_path / "last.pt", network(), config=config)
    other = save_checkpoint(tmp_path / "other.pt", network(seed=1), config=config)
    found = evaluate(tmp_path, "--checkpoint", both)
    assert "both.pt: the moving average of its weights" in capsys.readouterr().out
    assert found["networks"][0]["averaged"]
    assert found["loss"] == evaluate(tmp_path, "--checkpoint", other)["loss"]
    found = evaluate(tmp_path, "--checkpoint", both, "--no-averaged")
    assert found["loss"] == evaluate(tmp_path, "--checkpoint", last)["loss"]


# classes and folders


def test_a_missing_class_is_named(folder, tmp_path):
    root = make_folder(tmp_path)
    (root / "val" / "bee").rename(root / "train-bee")
    with pytest.raises(DataError, match=r"the class 'bee' has no folder \(1 such classes\)"):
        open_folder(str(root), "test", CLASSES)
    # nobody knows the names: the folders that there are number the outputs
    assert open_folder(str(root), "test").classes == ("ant", "cat", "dog", "elk", "fox")
    found = open_folder(str(root), "test", CLASSES, subset=True)
    assert sorted({found.read(index)[1] for index in range(len(found))}) == [0, 2, 3, 4, 5]
    # train/ numbers them as it did in training
    make_folder(root, "train")
    with pytest.raises(DataError, match="the class 'bee' has no folder"):
        open_folder(str(root), "test")


def test_a_class_that_no_output_stands_for_is_named(folder):
    with pytest.raises(DataError, match="the folder 'fox' is none of the 5 classes"):
        open_folder(str(folder), "test", CLASSES[:5])


def test_outputs_and_folders_that_differ_in_number(folder, tmp_path, capsys):
    config = {"data_dir": str(folder)}
    path = save_checkpoint(tmp_path / "net.pt", network(classes=7), config=config)
    line = fails(capsys, "--checkpoint", path)
    assert re.search("12 images of 6 classes, but .*net.pt has 7 outputs; .*--classes", line), line


def test_a_folder_of_class_folders_serves_without_val(folder):
    assert len(open_folder(str(folder / "val"), "test")) == 12


def test_folders_without_images_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="holds no class folders"):
        open_folder(str(tmp_path), "test")
    (tmp_path / "ant").mkdir()
    with pytest.raises(DataError, match=r"the class folder .*ant holds no image"):
        open_folder(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "got none"), ("a\na\n", "got 'a' twice"), ("a\n\nb\n", "got an empty line")],
)
def test_names_of_classes(tmp_path, text, message):
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=f"must hold one class name a line, {message}"):
        read_classes(path)


def test_names_are_read_in_their_order(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("tench\n goldfish \ngreat white shark\n\n")
    assert read_classes(path) == ("tench", "goldfish", "great white shark")


def test_shards(folder, tmp_path, capsys):
    """WebDataset's: their labels are the numbers of the outputs."""
    files = sorted((folder / "val").glob("*/*.png"))
    with tarfile.open(tmp_path / "val-000.tar", "w") as tar:
        for number, file in enumerate(files):
            label = str(CLASSES.index(file.parent.name)).encode()
            for kind, content in (("png", file.read_bytes()), ("cls", label)):
                member = tarfile.TarInfo(f"{number:04d}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    config = {"data_dir": str(folder)}
    path = save_checkpoint(tmp_path / "net.pt", network(), config=config)
    expected = evaluate(tmp_path, "--checkpoint", path)
    path = save_checkpoint(
        tmp_path / "net.pt", network(), config={"data": "webdataset", "data_dir": str(tmp_path)}
    )
    found = evaluate(tmp_path, "--checkpoint", path)
    assert found["top1"] == expected["top1"]
    assert found["loss"] == pytest.approx(expected["loss"])
    with pytest.raises(DataError, match="labels must be 0 to 4, the network's outputs, got 5"):
        open_shards(str(tmp_path), "test", None, 5)


# batches


class Sizes:
    """Images of given sizes, each filled with its index."""

    classes, side, description = ("a",), None, "sizes"

    def __init__(self, sides) -> None:
        self.sides = sides

    def __len__(self) -> int:
        return len(self.sides)

    def read(self, index: int):
        height, width = self.sides[index]
        return torch.full((3, height, width), index, dtype=torch.uint8), index


@pytest.mark.parametrize("held", [2**29, 5000])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_one_size_go_together(monkeypatch, held, workers):
    monkeypatch.setattr("fastres.evaluation.batches._HELD", held)
    images = Sizes([(20, 20 + index % 3) for index in range(40)])
    protocol = make("fully-conv", crop=20, size=20)
    batches = list(load(images, protocol, 4, workers, pytest.fail))
    seen = torch.cat([batch.indices for batch in batches]).tolist()
    assert sorted(seen) == list(range(40))
    for batch in batches:
        assert len(batch.indices) <= 4
        (view,) = batch.views
        assert view.shape[3] == 20 + int(batch.indices[0]) % 3
        assert torch.equal(batch.labels, batch.indices)
        assert torch.equal(view[:, 0, 0, 0], batch.indices.to(torch.uint8))
    full = sum(len(batch.indices) == 4 for batch in batches)
    assert full >= 9 if held > 5000 else full < 9


def test_images_in_memory():
    images = TensorImages(
        "cifar10", torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([2, 0, 1]), 3
    )
    assert (len(images), images.side, images.classes) == (3, 8, ("0", "1", "2"))
    assert images.read(0)[1] == 2
