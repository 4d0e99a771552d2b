"""WebDataset's shards: images and labels, any order, and every way they can be broken."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch

from fastres.training.config import TrainConfig
from fastres.training.data import open_source
from fastres.training.data.loader import Loader
from fastres.training.data.sampler import TrainSampler
from fastres.training.errors import DataError

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        members = []
        for index in range(4 * number, 4 * number + 4):
            members += [(f"{index:05d}.png", png(index)), (f"{index:05d}.cls", b"%d" % (index % 3))]
        shard(tmp_path / f"train-{number:03d}.tar", members)
    shard(tmp_path / "val-000.tar", [("a/0.cls", b"2"), ("a/0.png", png(50)), ("readme", b"x")])
    return tmp_path


def _open(folder, **options):
    return open_source(
        TrainConfig.build("webdataset", data_dir=str(folder), image_size=8, **options)
    )


def test_images_and_labels(folder):
    source = _open(folder)
    assert (len(source.train), len(source.held_out), source.num_classes) == (12, 1, 3)
    assert source.classes == ("0", "1", "2")
    images, labels = source.train.__getitems__([(0, index) for index in range(12)])
    assert images.shape == (12, 3, 8, 8)
    assert labels.tolist() == [index % 3 for index in range(12)]
    stored = np.array(source.train.store.image(7))
    assert np.array_equal(stored, np.array(Image.open(io.BytesIO(png(7)))))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_and_a_start_in_the_middle_change_nothing(folder):
    split = _open(folder, color="alexnet").train
    loaders = [
        Loader(split, TrainSampler(12, 4, 0), workers, pin_memory=False) for workers in (0, 2)
    ]
    whole = list(loaders[0])
    for loader in loaders:
        loader.sampler.seek(0, 1)
        for raw, other in zip(whole[1:], loader, strict=True):
            assert torch.equal(raw.images, other.images)
            assert torch.equal(raw.draws["shift"], other.draws["shift"])
        loader.close()


def test_shards_of_the_webdataset_package(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    for name in ("train", "val"):
        with webdataset.TarWriter(str(tmp_path / f"{name}-0.tar")) as writer:
            for index in range(4):
                writer.write({"__key__": f"{index}", "png": png(index), "cls": index % 2})
    source = _open(tmp_path)
    assert (len(source.train), source.num_classes) == (4, 2)
    assert source.train.__getitems__([(0, 3)])[1].tolist() == [1]


@pytest.mark.parametrize(
    ("name", "members", "message"),
    [
        ("train-000", [("0.png", b"x"), ("0.cls", b"bird")], "0.cls must hold a class number"),
        ("train-000", [("0.png", b"x"), ("0.cls", b"-1")], "got b'-1'"),
        ("train-000", [("0.png", b"x")], r"the image 0\.png has no \.cls beside it"),
        ("val-000", [("0.png", b"x"), ("0.cls", b"3")], "labels must be 0 to 2 as in train, got 3"),
        ("val-000", [("notes", b"x")], "hold no image"),
    ],
)
def test_members_that_do_not_fit_are_named(folder, name, members, message):
    shard(folder / f"{name}.tar", members)
    with pytest.raises(DataError, match=message):
        _open(folder)


def test_shards_that_cannot_be_read_are_named(folder, tmp_path):
    path = folder / "train-001.tar"
    whole = path.read_bytes()
    for content in (b"", whole[:700], b"\x1f\x8b" + whole):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train-001\.tar is truncated or no tar file"):
            _open(folder)
    path.write_bytes(whole)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"no shard train-\*\.tar in"):
        _open(tmp_path / "none")
    with pytest.raises(DataError, match="must be a folder of shards"):
        _open(tmp_path / "absent")


def test_a_broken_image_is_named_with_its_shard(folder):
    shard(folder / "train-000.tar", [("0.png", png(0)[:60]), ("0.cls", b"0")])
    with pytest.raises(DataError, match=r"cannot read the image 0\.png of .*train-000\.tar"):
        _open(folder).train.__getitems__([(0, 0)])
    split = _open(folder, skip_broken=True).train
    raw = split.fetch([(0, 0), (0, 1)])
    assert len(raw.images) == 2
    assert len(raw.skipped) == 1
