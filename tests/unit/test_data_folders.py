"""ImageFolder, digits and synthetic images."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from training_runs import assert_same_run, rows, tiny_config, tiny_trainer

from fastres import cli
from fastres.training.config import TrainConfig
from fastres.training.data import open_source
from fastres.training.data.loader import Loader
from fastres.training.data.sampler import TrainSampler
from fastres.training.data.views import Geometry
from fastres.training.errors import DataError, Stopped, UsageError

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


def _open(folder, **options):
    config = TrainConfig.build("imagefolder", data_dir=str(folder), image_size=16, **options)
    return open_source(config)


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


def _break(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"nothing")


def test_skipping_is_opt_in_and_keeps_the_size_of_a_training_batch(folder):
    _break(folder, "train/ant/2.png", "train/bee/0.png", "val/bee/0.png")
    with pytest.raises(DataError, match=r"cannot read the image .*ant.2\.png"):
        _open(folder).train.__getitems__([(0, 2)])
    source = _open(folder, skip_broken=True)
    raw = source.train.fetch([(0, 2), (0, 5), (0, 1)])
    assert raw.labels.tolist() == [1, 1, 0]  # the next that can be read, two further on
    assert len(raw.images) == 3
    assert [name.split(":")[0] for name in raw.skipped] == [
        f"cannot read the image {folder / name}" for name in ("train/ant/2.png", "train/bee/0.png")
    ]
    test = source.held_out.fetch([(0, index) for index in range(4)])
    assert test.labels.tolist() == [0, 0, 1]
    assert len(test.skipped) == 1


def test_when_nothing_can_be_read_the_run_ends(folder):
    paths = [str(path.relative_to(folder)) for path in (folder / "train").rglob("*.png")]
    _break(folder, *paths)
    with pytest.raises(DataError, match="no image can be read; the last: cannot read the image"):
        _open(folder, skip_broken=True).train.__getitems__([(0, 2)])


def test_a_run_counts_what_it_skips(folder, tmp_path, capsys):
    _break(folder, "train/ant/2.png", "val/bee/0.png")
    command = ["train", "--data", "imagefolder", "--data-dir", str(folder), "--image-size", "16",
               "--model", "resnet18", "--no-fused", "--device", "cpu", "--epochs", "2",
               "--batch-size", "6", "--lr", "0.001"]  # fmt: skip
    out = tmp_path / "run"
    assert cli.main([*command, "--out", str(out)]) == 2
    assert "cannot read the image" in capsys.readouterr().err
    out = tmp_path / "other"
    assert cli.main([*command, "--skip-broken", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("broken images skipped: 2") == 2  # a training and a validation image
    assert printed.count("skipped: cannot read the image") == 2
    assert [row["skipped"] for row in rows(out / "epochs.csv")] == ["2", "2"]
    _break(folder, "val/bee/1.png", "val/ant/0.png", "val/ant/1.png")
    assert cli.main([*command, "--skip-broken", "--out", str(tmp_path / "third")]) == 2
    assert "no image of the split that is evaluated could be read" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("crop", ["side", "area"])
def test_workers_change_nothing(folder, crop):
    split = _open(folder, color="alexnet", crop=crop).train
    loaders = [
        Loader(split, TrainSampler(6, 2, 0), workers, pin_memory=False) for workers in (0, 2)
    ]
    for epoch, start in ((0, 0), (1, 1)):
        for loader in loaders:
            loader.sampler.seek(epoch, start)
        pairs = list(zip(*loaders, strict=True))
        assert len(pairs) == 3 - start
        for raw, other in pairs:
            assert torch.equal(raw.images, other.images)
            assert torch.equal(raw.draws["shift"], other.draws["shift"])
    loaders[1].close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_resumed_run_with_other_workers_is_the_uninterrupted_one(folder, tmp_path):
    def trainer(name, **options):
        config = TrainConfig.build(
            "imagefolder", data_dir=str(folder), image_size=16, color="alexnet", batch_size=2,
            epochs=2, log_every=1, device="cpu", out=str(tmp_path / name), **options,
        )  # fmt: skip
        return tiny_trainer(config)

    trainer("one").run()
    first = trainer("two", workers=2)
    step = first._step

    def stopping(images, labels):
        if first.progress.iteration == 3:
            first._stop.signum = 15
        return step(images, labels)

    first._step = stopping
    with pytest.raises(Stopped):
        first.run()
    second = trainer("two", workers=1)
    second.resume(tmp_path / "two" / "last.pt")
    second.run()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_the_shorter_side_is_drawn_from_256_to_480():
    """The transform itself, on an image whose rows tell how far it was scaled."""
    geometry = Geometry(224, (256, 480))
    view = geometry.training()
    resize = view.transforms[0]
    image = Image.fromarray(np.zeros((100, 150, 3), dtype=np.uint8))
    torch.manual_seed(0)
    sides = [min(resize(image).size) for _ in range(400)]
    assert min(sides) < 262
    assert max(sides) > 474
    assert set(sides) <= set(range(256, 481))
    assert 350 < np.mean(sides) < 386
    assert view(image).shape == (3, 224, 224)
    assert view(image).dtype == torch.uint8


def test_geometry_follows_the_image_size_unless_it_is_given():
    assert Geometry(224).sides == (256, 480)
    assert Geometry(112).sides == (128, 240)
    assert Geometry(112, (120, 200)).sides == (120, 200)
    wide = Image.fromarray(np.zeros((100, 300, 3), dtype=np.uint8))
    assert Geometry(112, (120, 200)).testing()(wide).shape == (3, 112, 112)
    kinds = [
        type(part).__name__ for part in Geometry(8, crop="area", flip=False).training().transforms
    ]
    assert kinds == ["RandomResizedCrop", "PILToTensor"]


def test_a_test_image_is_the_centre_of_the_scaled_one(folder):
    source = _open(folder)
    got = source.held_out.fetch([(0, 1)]).images[0]
    image = source.held_out.store.image(1).resize((18, 23), Image.Resampling.BILINEAR)
    expected = np.array(image)[4:20, 1:17].transpose(2, 0, 1)
    assert np.array_equal(got.numpy(), expected)


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


@pytest.mark.parametrize("data", ["cifar10", "imagefolder", "webdataset"])
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
