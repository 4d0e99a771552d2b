"""ImageFolder, digits and synthetic images."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from training_runs import tiny_config

from fastres.training.config import TrainConfig
from fastres.training.data import open_source
from fastres.training.errors import DataError, UsageError

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for side, count in (("train", 3), ("val", 2)):
        for name in ("ant", "bee"):
            (tmp_path / side / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / side / name / f"{number}.png")
    return tmp_path


def _open(folder):
    return open_source(TrainConfig.build("imagefolder", data_dir=str(folder), image_size=16))


def test_imagefolder_batches(folder):
    source = _open(folder)
    assert (len(source.train), len(source.held_out), source.num_classes) == (6, 4, 2)
    images, labels = source.train.__getitems__([(0, 0), (0, 5)])
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0, 1]
    again, _ = source.train.__getitems__([(0, 5)])
    assert torch.equal(images[1], again[0])
    later, _ = source.train.__getitems__([(1, 5)])
    assert not torch.equal(again, later)


def test_transforms_leave_torchs_generator_alone(folder):
    source = _open(folder)
    before = torch.get_rng_state()
    source.train.__getitems__([(0, 0)])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_broken_image_is_named(folder, content):
    path = folder / "train" / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    source = _open(folder)
    with pytest.raises(DataError, match=r"cannot read the image .*bee.1\.png"):
        source.train.__getitems__([(0, 3), (0, 4)])


def test_empty_class_folder_is_named(folder):
    (folder / "train" / "cat").mkdir()
    (folder / "train" / "cat" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"the class folder .*train.cat holds no image"):
        _open(folder)


def test_missing_folders_and_classes_are_named(folder, tmp_path):
    for path in (folder / "val" / "ant").iterdir():
        path.unlink()
    (folder / "val" / "ant").rmdir()
    with pytest.raises(DataError, match="class 'ant' is in train only"):
        _open(folder)
    with pytest.raises(DataError, match=r"no folder .*train: data_dir must hold train/ and val/"):
        _open(folder / "val")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no class folders"):
        _open(tmp_path / "bare")


@pytest.mark.parametrize("data", ["cifar10", "imagefolder"])
def test_data_dir_is_asked_for(data):
    with pytest.raises(UsageError, match=f"data '{data}' needs data_dir"):
        open_source(TrainConfig.build(data))


def test_digits_split_is_stratified_and_fixed():
    pytest.importorskip("sklearn")
    sources = [open_source(TrainConfig.build("digits", seed=seed)) for seed in (0, 1)]
    source = sources[0]
    assert (len(source.train), len(source.held_out)) == (1437, 360)
    assert source.train.images.shape[1:] == (3, 32, 32)
    assert source.train.images.max() == 255
    assert torch.equal(source.held_out.images, sources[1].held_out.images)
    counts = torch.bincount(source.held_out.labels)
    assert counts.min() >= 34
    assert counts.max() <= 38
    images, _ = source.train.__getitems__([(0, i) for i in range(100)])
    assert float(images.mean()) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
    ("data", "module", "extra"),
    [("digits", "sklearn", "demo"), ("imagefolder", "torchvision", "data")],
)
def test_missing_library_names_the_extra(monkeypatch, folder, data, module, extra):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == module:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=rf"needs .*pip install 'fastres\[{extra}\]'"):
        open_source(TrainConfig.build(data, data_dir=str(folder) if data != "digits" else None))


def test_synthetic_is_fixed_by_the_seed(tmp_path):
    one, same, other = (
        open_source(tiny_config(tmp_path, seed=seed)).train.images for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
