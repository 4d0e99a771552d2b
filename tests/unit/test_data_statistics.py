"""`fastres data mean`: the numbers against NumPy's, its file, and the runs that use it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastres import cli
from fastres.training import checkpoint
from fastres.training.config import TrainConfig
from fastres.training.data import open_source
from fastres.training.data.normalize import Normalize
from fastres.training.data.statistics import Accumulator, Statistics
from fastres.training.data_command import compute
from fastres.training.errors import CheckpointError, DataError

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")

SMALL = ["--image-size", "8", "--device", "cpu", "--model", "resnet18", "--no-fused"]


def write_folder(root, train=5, size=(14, 12)):
    generator = np.random.default_rng(0)
    for side, count in (("train", train), ("val", 2)):
        for name in ("ant", "bee"):
            (root / side / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                pixels[..., 2] //= 3  # the channels differ
                Image.fromarray(pixels).save(root / side / name / f"{number}.png")
    return root


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "images")


def _config(folder, **options):
    return TrainConfig.build("imagefolder", data_dir=str(folder), image_size=8, **options)


def test_statistics_are_numpys():
    generator = np.random.default_rng(1)
    crops = generator.integers(0, 256, (30, 3, 6, 6), dtype=np.uint8)
    crops[:, 1] = crops[:, 0] // 2 + crops[:, 1] // 4
    sums = Accumulator()
    for part in (crops[:7], crops[7:8], crops[8:]):
        sums.add(torch.from_numpy(part))
    found = sums.finish()
    values = crops / 255
    np.testing.assert_allclose(found.mean.numpy(), values.mean(0), atol=1e-7)
    pixels = values.transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(found.std.numpy(), pixels.std(1), rtol=1e-6)
    covariance = np.cov(pixels, bias=True)
    vectors = found.vectors.numpy()
    np.testing.assert_allclose(
        vectors @ np.diag(found.values.numpy()) @ vectors.T, covariance, atol=1e-12
    )
    assert found.images == 30
    whole = Accumulator()
    whole.add(torch.from_numpy(crops))
    other = whole.finish()
    assert torch.equal(other.mean, found.mean)
    assert torch.equal(other.values, found.values)


def test_it_is_of_the_crops_that_training_sees(folder):
    config = _config(folder, seed=3)
    found, skipped = compute(config)
    split = open_source(config).train
    crops = split.fetch([(0, index) for index in range(10)]).images
    torch.testing.assert_close(found.mean, (crops.double() / 255).mean(0).float())
    assert (found.images, found.image_size, skipped) == (10, 8, [])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_command_its_file_and_the_run_that_uses_it(folder, tmp_path, capsys):
    common = ["data", "mean", "--data-dir", str(folder), "--image-size", "8"]
    assert cli.main(common) == 0
    out = capsys.readouterr().out
    assert "10 crops of 8x8" in out
    assert "component 3: eigenvalue" in out
    found = Statistics.load(folder / "statistics.pt")
    assert cli.main([*common, "--workers", "2", "--out", str(tmp_path / "other.pt")]) == 0
    other = Statistics.load(tmp_path / "other.pt")
    assert torch.equal(found.mean, other.mean)
    assert torch.equal(found.vectors, other.vectors)

    run = ["train", "--recipe", "imagenet", "--data-dir", str(folder), "--shorter-side", "9,12",
           "--color", "data", "--batch-size", "5", "--iterations", "2", *SMALL]  # fmt: skip
    capsys.readouterr()
    assert cli.main([*run, "--out", str(tmp_path / "run")]) == 0
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert torch.equal(Normalize.from_dict(state["normalize"]).mean, found.mean)
    assert state["classes"] == ["ant", "bee"]
    # with another mean, it is another run
    images = open_source(_config(folder, mean="pixel")).held_out.__getitems__([(0, 1)])[0]
    raw = open_source(_config(folder)).held_out.fetch([(0, 1)]).images
    torch.testing.assert_close(images, raw / 255 - found.mean)
    Statistics(found.mean + 0.1, found.std, found.values, found.vectors, 10).save(
        folder / "statistics.pt"
    )
    code = cli.main([*run, "--iterations", "4", "--out", str(tmp_path / "run"), "--resume", "auto"])
    assert code == CheckpointError.exit_code
    assert "the mean or deviation that it subtracts" in capsys.readouterr().err


def test_a_missing_damaged_or_other_file_is_named(folder):
    with pytest.raises(DataError, match=r"no file .*statistics\.pt .*fastres data mean --data"):
        open_source(_config(folder, mean="pixel"))
    with pytest.raises(DataError, match="the data's colours"):
        open_source(_config(folder, color="data"))
    path = folder / "statistics.pt"
    compute(_config(folder))[0].save(path)
    whole = path.read_bytes()
    with pytest.raises(DataError, match=r"holds a mean of 8x8 pixels, image_size is 12"):
        open_source(
            TrainConfig.build("imagefolder", data_dir=str(folder), image_size=12, mean="pixel")
        )
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"statistics\.pt is truncated or not a file of `fastres"):
        open_source(_config(folder, mean="pixel"))
    torch.save({"mean": 1}, path)
    with pytest.raises(DataError, match="is truncated or not a file of"):
        open_source(_config(folder, mean="pixel"))


def test_a_broken_image_is_named_or_counted(folder, capsys):
    (folder / "train" / "bee" / "3.png").write_bytes(b"nothing")
    command = ["data", "mean", "--data-dir", str(folder), "--image-size", "8"]
    assert cli.main(command) == 2
    assert "cannot read the image" in capsys.readouterr().err
    assert not (folder / "statistics.pt").exists()
    assert cli.main([*command, "--skip-broken"]) == 0
    out = capsys.readouterr().out
    assert "9 crops of 8x8" in out
    assert "skipped: cannot read the image" in out
