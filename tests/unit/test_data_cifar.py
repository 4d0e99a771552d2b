"""CIFAR-10 from its original files, and every way they can be broken."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from fastres.training.config import TrainConfig
from fastres.training.data import cifar, open_source
from fastres.training.errors import DataError

RECORDS = 20
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(cifar, "RECORDS", RECORDS)


def _content(number):
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 256, (RECORDS, 3072), dtype=np.uint8)
    return pixels, generator.integers(0, 10, RECORDS)


@pytest.fixture
def binary(tmp_path):
    for number, name in enumerate(NAMES):
        pixels, labels = _content(number)
        table = np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)
        (tmp_path / f"{name}.bin").write_bytes(table.tobytes())
    return tmp_path


@pytest.fixture
def pickled(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        pixels, labels = _content(number)
        content = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


@pytest.mark.parametrize("kind", ["binary", "pickled"])
def test_both_forms_give_the_same_images(kind, request):
    source = cifar.open_cifar10(str(request.getfixturevalue(kind)), validation=10, seed=0)
    assert (len(source.train), len(source.held_out), len(source.test)) == (90, 10, 20)
    pixels, labels = _content(5)
    assert torch.equal(source.test.images.flatten(1), torch.from_numpy(pixels))
    assert torch.equal(source.test.labels, torch.from_numpy(labels))
    both = torch.cat([source.train.images, source.held_out.images]).flatten(1)
    expected = np.concatenate([_content(number)[0] for number in range(5)])
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, expected))


def test_mean_is_the_training_images_and_batches_are_centred(binary):
    source = cifar.open_cifar10(str(binary), validation=10, seed=0)
    mean = source.train.images.double().mean(0) / 255
    torch.testing.assert_close(source.train.mean, mean.float())
    images, labels = source.held_out.__getitems__([(0, 3), (0, 1)])
    torch.testing.assert_close(images, source.held_out.images[[3, 1]] / 255 - mean.float())
    assert labels.dtype == torch.int64


def test_training_on_all_images_evaluates_the_test_set(binary):
    source = cifar.open_cifar10(str(binary), validation=0, seed=0)
    assert len(source.train) == 100
    assert source.test is None
    assert source.held_out_name == "test"


def test_truncated_binary_file_is_named(binary):
    path = binary / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        DataError, match=r"data_batch_3\.bin is truncated: it holds 61455 bytes, expected 61460"
    ):
        cifar.open_cifar10(str(binary), 0, 0)


def test_longer_binary_file_is_named(binary):
    with open(binary / "test_batch.bin", "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"test_batch\.bin is not a CIFAR-10 file"):
        cifar.open_cifar10(str(binary), 0, 0)


def test_label_out_of_range_is_named(binary):
    path = binary / "data_batch_2.bin"
    content = bytearray(path.read_bytes())
    content[4 * 3073] = 10
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"data_batch_2\.bin: labels must be 0 to 9, got 10 in record 4"
    ):
        cifar.open_cifar10(str(binary), 0, 0)


@pytest.mark.parametrize("keep", [0, 1, 50, 5000, -1])
def test_truncated_pickle_is_named(pickled, keep):
    path = pickled / "cifar-10-batches-py" / "data_batch_4"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="data_batch_4 is truncated or not a CIFAR-10 pickle"):
        cifar.open_cifar10(str(pickled), 0, 0)


def test_pickle_that_runs_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(DataError, match=r"it asks for \w+\.open"):
        cifar.read_pickle(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no b'data' and b'labels'"),
        ({b"data": 3, b"labels": []}, r"pixels must be uint8 \(20, 3072\), got int None"),
        ({b"data": np.zeros((20, 3072)), b"labels": [0] * 20}, "got float64"),
        ({b"data": np.zeros((19, 3072), np.uint8), b"labels": [0] * 19}, r"got uint8 \(19, 3072\)"),
        ({b"data": np.zeros((20, 3072), np.uint8), b"labels": [0] * 19}, "expected 20 labels"),
        ({b"data": np.zeros((20, 3072), np.uint8), b"labels": [-1] * 20}, "got -1 in record 0"),
        ({b"data": np.zeros((20, 3072), np.uint8), b"labels": ["a"] * 20}, "must be integers"),
    ],
)
def test_pickle_with_other_content_is_named(tmp_path, content, message):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=f"data_batch_1.*{message}"):
        cifar.read_pickle(path)


def test_missing_folder_file_and_unpacked_archive(tmp_path, binary):
    with pytest.raises(DataError, match="data_dir must be a folder"):
        cifar.open_cifar10(str(tmp_path / "none"), 0, 0)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "cifar-10-python.tar.gz").touch()
    with pytest.raises(DataError, match=r"no data_batch_1.bin .* unpack cifar-10-python.tar.gz"):
        cifar.open_cifar10(str(empty), 0, 0)
    (binary / "data_batch_5.bin").unlink()
    with pytest.raises(DataError, match=r"cannot read .*data_batch_5\.bin: No such file"):
        cifar.open_cifar10(str(binary), 0, 0)


def test_validation_must_leave_images(binary):
    with pytest.raises(DataError, match="validation must be 0 to 98 images, got 100"):
        cifar.open_cifar10(str(binary), 100, 0)


def test_options_change_padding_flip_and_mean(binary):
    def source(**options):
        config = TrainConfig.build("cifar10", data_dir=str(binary), validation=10, **options)
        return open_source(config)

    keys = [(0, index) for index in range(90)]
    still = source(padding=0, flip=False)
    assert torch.equal(still.train.fetch(keys).images, still.train.images)
    flipped = source(padding=0).train.fetch(keys).images
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, still.train.images, strict=True)]
    assert 20 < sum(mirrored) < 70
    default = source()
    assert (default.train.augment.padding, default.train.augment.flip) == (4, True)
    assert default.train.mean.shape == (3, 32, 32)
    channel = source(mean="channel").train.mean
    torch.testing.assert_close(channel.flatten(), default.train.mean.mean((1, 2)))
    assert default.classes[:2] == ("airplane", "automobile")
    assert torch.equal(default.normalize.mean, default.train.mean)
