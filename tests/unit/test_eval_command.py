"""`fastres eval` from end to end: every protocol on a folder of images, against a plain loop."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from evaluation_runs import (
    CLASSES,
    CROP,
    MEAN,
    STD,
    evaluate,
    make_folder,
    network,
    prepared,
    save_checkpoint,
)
from training_runs import COMMAND, rows

from fastres import cli

pytest.importorskip("PIL")
v2 = pytest.importorskip("torchvision.transforms.v2")
datasets = pytest.importorskip("torchvision.datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ROOT/val with twelve images of six sizes, and ROOT/net.pt trained, as it says, on it."""
    root = make_folder(tmp_path_factory.mktemp("images"))
    save_checkpoint(root / "net.pt", network(), config={"data_dir": str(root)})
    return root


def by_hand(folder: Path, models: list, protocol: str, average: str, flip: bool = False) -> float:
    """The loss of the averaged outputs, image by image, with torchvision's own transforms."""
    resize = {
        size: v2.Resize(size, antialias=True) for size in (16, 18, 27, 34, 46)
    }  # 224, 256, 384, 480, 640 in proportion to a crop of 16
    total, count = 0.0, 0
    for image, label in datasets.ImageFolder(str(folder / "val")):
        views = {
            "center": lambda image=image: [v2.CenterCrop(CROP)(resize[18](image))],
            "ten-crop": lambda image=image: v2.TenCrop(CROP)(resize[18](image)),
            "fully-conv": lambda image=image: [resize[18](image)],
            "multi-scale": lambda image=image: [one(image) for one in resize.values()],
        }[protocol]()
        views = [v2.functional.pil_to_tensor(view) for view in views]
        if flip:
            views += [view.flip(-1) for view in views]
        with torch.no_grad():
            outputs = torch.stack([model(prepared(view))[0] for model in models for view in views])
        if average == "probabilities":
            total -= float(outputs.softmax(1).mean(0)[label].log())
        else:
            total += float(F.cross_entropy(outputs.mean(0), torch.tensor(label)))
        count += 1
    return total / count


@pytest.mark.parametrize("average", ["probabilities", "scores"])
@pytest.mark.parametrize("protocol", ["center", "ten-crop", "fully-conv", "multi-scale"])
def test_every_protocol_gives_what_doing_it_by_hand_gives(folder, tmp_path, protocol, average):
    flip = protocol in ("fully-conv", "multi-scale")
    result = evaluate(
        tmp_path, "--checkpoint", folder / "net.pt", "--protocol", protocol,
        "--average", average, *(["--flip"] if flip else []), "--batch-size", "3",
    )  # fmt: skip
    assert result["loss"] == pytest.approx(by_hand(folder, [network()], protocol, average, flip))
    views = {"center": 1, "ten-crop": 10, "fully-conv": 2, "multi-scale": 10}[protocol]
    assert result["protocol"]["views"] == views
    assert (result["images"], result["classes"], result["skipped"]) == (12, 6, [])


def test_batches_and_workers_change_nothing(folder, tmp_path):
    options = ["--checkpoint", folder / "net.pt", "--protocol", "multi-scale"]
    one = evaluate(tmp_path / "one", *options, "--batch-size", "1")
    many = evaluate(tmp_path / "many", *options, "--batch-size", "64", "--workers", "2")
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert many["top1"] == one["top1"]


def test_at_the_training_size_fully_convolutional_is_the_crop(tmp_path):
    """Square images at the crop's size: the same numbers, bit for bit."""
    from PIL import Image

    for label, name in enumerate(CLASSES):
        (tmp_path / "val" / name).mkdir(parents=True)
        pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "val" / name / f"{label}.png")
    file = save_checkpoint(tmp_path / "net.pt", network(), config={"data_dir": str(tmp_path)})
    results = [
        evaluate(tmp_path, "--checkpoint", file, "--protocol", protocol, "--size", CROP)
        for protocol in ("center", "fully-conv")
    ]
    for key in ("loss", "top1", "top5"):
        assert results[0][key] == results[1][key]


def test_an_ensemble_averages_its_networks(folder, tmp_path):
    other = save_checkpoint(tmp_path / "other.pt", network(seed=1))
    files = ["--checkpoint", folder / "net.pt", other]
    result = evaluate(tmp_path, *files, "--protocol", "ten-crop")
    models = [network(), network(seed=1)]
    expected = by_hand(folder, models, "ten-crop", "probabilities")
    assert result["loss"] == pytest.approx(expected)
    alone = [by_hand(folder, [model], "ten-crop", "probabilities") for model in models]
    assert [one["loss"] for one in result["networks"]] == [pytest.approx(loss) for loss in alone]
    assert [Path(one["checkpoint"]).name for one in result["networks"]] == ["net.pt", "other.pt"]


@pytest.mark.parametrize("options", [["--optimize"], ["--fused"], ["--fused", "--optimize"]])
def test_fused_and_optimised_networks(folder, tmp_path, options, monkeypatch):
    if "--optimize" not in options:
        monkeypatch.setenv("FASTRES_BACKEND", "reference")
    file = ["--checkpoint", folder / "net.pt", "--protocol", "fully-conv"]
    plain, found = (evaluate(tmp_path, *file, *more) for more in ([], options))
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert found["settings"]["optimize"] == ("--optimize" in options)


def test_half_precision_stays_close(folder, tmp_path):
    file = ["--checkpoint", folder / "net.pt"]
    plain, half = (evaluate(tmp_path, *file, *more) for more in ([], ["--amp", "bf16"]))
    assert half["loss"] != plain["loss"]
    assert half["loss"] == pytest.approx(plain["loss"], rel=0.05)


def test_what_is_written_and_printed(folder, tmp_path, capsys):
    result = evaluate(tmp_path, "--checkpoint", folder / "net.pt", "--worst", "2")
    printed = capsys.readouterr().out
    table = rows(tmp_path / "out" / "classes.csv")
    assert [row["class"] for row in table] == list(CLASSES)
    assert sum(int(row["images"]) for row in table) == 12
    hits = sum(float(row["top1"]) * int(row["images"]) / 100 for row in table)
    assert result["top1"]["hits"] == pytest.approx(hits)
    assert result["top1"]["low95"] < result["top1"]["percent"] < result["top1"]["high95"]
    assert result["milliseconds_per_image"] > 0
    assert result["environment"]["torch"] == torch.__version__
    assert f"top-1 {result['top1']['percent']:.2f}%" in printed
    worst = min(table, key=lambda row: (float(row["top1"]), float(row["top5"])))
    lines = printed[printed.index("Worst 2 of 6 classes") :].splitlines()
    assert lines[2].split()[0] == worst["class"]
    assert len(lines) == 5  # title, header, two classes, and where the files are


def test_training_and_its_evaluation_agree(tmp_path, capsys):
    """The last epoch's held-out error, as the run logged it, of the data it was trained on."""
    run = tmp_path / "run"
    assert cli.main([*COMMAND, "--out", str(run)]) == 0
    result = evaluate(tmp_path, "--checkpoint", run / "last.pt")
    last = rows(run / "epochs.csv")[-1]
    assert result["loss"] == pytest.approx(float(last["loss"]), rel=1e-5)
    assert result["top1"]["percent"] == pytest.approx(float(last["top1"]))
    assert "synthetic: 22 images of 10 classes" in capsys.readouterr().out
    # scaled to 9 pixels, corners of 8
    ten = evaluate(tmp_path, "--checkpoint", run / "last.pt", "--protocol", "ten-crop")
    assert ten["protocol"]["sizes"] == [9]
    train = evaluate(tmp_path, "--checkpoint", run / "last.pt", "--split", "train")
    assert train["images"] == 90


def test_training_on_a_folder_and_its_evaluation_agree(tmp_path):
    make_folder(make_folder(tmp_path), "train")
    run = tmp_path / "run"
    command = [
        "train", "--data", "imagefolder", "--data-dir", tmp_path, "--model", "resnet20",
        "--image-size", CROP, "--no-fused", "--device", "cpu", "--batch-size", "6", "--iterations",
        "2", "--out", run,
    ]  # fmt: skip
    assert cli.main([str(word) for word in command]) == 0
    result = evaluate(tmp_path, "--checkpoint", run / "last.pt")
    last = rows(run / "epochs.csv")[-1]
    assert result["loss"] == pytest.approx(float(last["loss"]), rel=1e-5)
    assert result["top5"]["percent"] == pytest.approx(float(last["top5"]))


# broken images


def copied(folder: Path, to: Path) -> Path:
    root = make_folder(to)
    broken = root / "val" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return root


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_image_is_named_or_skipped_and_counted(folder, tmp_path, capsys, workers):
    root = copied(folder, tmp_path)
    options = ["--checkpoint", str(folder / "net.pt"), "--data-dir", str(root), "--no-fused"]
    options += ["--device", "cpu", "--workers", workers, "--out", str(tmp_path / "out")]
    assert cli.main(["eval", *options]) == 2
    error = capsys.readouterr().err
    assert re.search(r"cannot read the image .*bee.1\.png: .*--skip-broken", error)
    assert len(error.splitlines()) == 1
    assert cli.main(["eval", *options, "--skip-broken"]) == 0
    assert "11 images, 1 skipped" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["images"] == 11
    assert "1.png" in result["skipped"][0]


def test_a_loading_process_that_dies_ends_the_test_in_one_line(
    folder, tmp_path, capsys, monkeypatch
):
    from fastres.evaluation import images

    monkeypatch.setattr(images.StoredImages, "read", lambda self, index: os._exit(9))
    options = ["--checkpoint", str(folder / "net.pt"), "--no-fused", "--device", "cpu"]
    assert cli.main(["eval", *options, "--workers", "1", "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a process that loads images died" in line


def test_a_class_without_images_is_an_empty_row(folder, tmp_path, capsys):
    root = make_folder(tmp_path)
    for path in (root / "val" / "bee").iterdir():
        path.unlink()
    (root / "val" / "bee").rmdir()
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES) + "\n")
    options = ["--checkpoint", folder / "net.pt", "--data-dir", root, "--classes", names]
    result = evaluate(tmp_path, *options, "--subset")
    assert (result["images"], result["classes"]) == (10, 6)
    with open(tmp_path / "out" / "classes.csv", newline="") as file:
        bee = list(csv.DictReader(file))[1]
    assert (bee["class"], bee["images"], bee["top1"]) == ("bee", "0", "")
    # the classes after it keep their outputs
    evaluate(tmp_path / "whole", "--checkpoint", folder / "net.pt")
    whole = rows(tmp_path / "whole" / "out" / "classes.csv")
    assert rows(tmp_path / "out" / "classes.csv")[2:] == whole[2:]


def test_means_are_the_checkpoints(folder, tmp_path):
    """Given, stored with the checkpoint, ImageNet's: in that order."""
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    stored = {"mean": mean[:, None, None], "std": std[:, None, None]}
    config = {"data_dir": str(folder)}
    file = save_checkpoint(tmp_path / "own.pt", network(), normalize=stored, config=config)
    told = [",".join(map(str, values)) for values in (MEAN, STD)]
    plain = evaluate(tmp_path, "--checkpoint", folder / "net.pt")
    own = evaluate(tmp_path, "--checkpoint", file)
    given = evaluate(tmp_path, "--checkpoint", file, "--mean", told[0], "--std", told[1])
    assert own["loss"] != plain["loss"]
    assert given["loss"] == plain["loss"]


def test_a_mean_image_is_scaled_to_the_size_of_the_view(folder, tmp_path):
    mean = torch.rand(3, CROP, CROP)
    normalize = {"mean": mean, "std": None}
    config = {"data_dir": str(folder)}
    file = save_checkpoint(tmp_path / "net.pt", network(), normalize=normalize, config=config)
    model, losses = network(), {"center": [], "fully-conv": []}
    for image, label in datasets.ImageFolder(str(folder / "val")):
        scaled = v2.functional.pil_to_tensor(v2.Resize(18, antialias=True)(image)) / 255
        views = {
            "center": v2.functional.center_crop(scaled, CROP) - mean,
            "fully-conv": scaled - v2.functional.resize(mean, list(scaled.shape[1:])),
        }
        for protocol, view in views.items():
            with torch.no_grad():
                loss = F.cross_entropy(model(view[None]), torch.tensor([label]))
            losses[protocol].append(loss.item())
    for protocol, expected in losses.items():
        found = evaluate(tmp_path, "--checkpoint", file, "--protocol", protocol)
        assert found["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--amp", "fp16"], "amp 'fp16' needs a GPU; on a CPU use 'bf16'"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--std", "0,1,1"], "std must be numbers above 0"),
        (["--size", "8"], "size must be at least the crop, 16, got 8"),
        (["--model", "a", "b"], "model must be one name or one for each of the 1 checkpoints"),
        (["--data", "cifar10"], "data 'cifar10' needs data_dir"),
        (["--data-dir", "nowhere"], "data_dir must be a folder of class folders, got 'nowhere'"),
        (["--split", "train"], r"no folder .*train"),
        (["--protocol", "ten-crop", "--flip"], "flip is part of the protocol"),
        (["--data", "synthetic"], "synthetic: .* of 10 classes, but .*net.pt has 6 outputs"),
        (["--classes", "none.txt"], "cannot read the class names in none.txt: No such file"),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder, tmp_path, capsys, options, message):
    command = ["eval", "--checkpoint", str(folder / "net.pt"), "--no-fused", "--device", "cpu"]
    assert cli.main([*command, "--out", str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastres eval: ")
    assert re.search(message, line), line


def test_results_that_cannot_be_written(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["eval", "--checkpoint", str(folder / "net.pt"), "--no-fused", "--device", "cpu"]
    assert cli.main([*command, "--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot write the results to" in capsys.readouterr().err


def test_outputs_that_are_no_numbers_are_refused(folder, tmp_path, capsys):
    model = network()
    model.fc.bias.data[0] = float("nan")
    file = save_checkpoint(tmp_path / "nan.pt", model, config={"data_dir": str(folder)})
    command = ["eval", "--checkpoint", str(file), "--no-fused", "--device", "cpu"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 1
    assert "nan.pt: the network's outputs are not finite" in capsys.readouterr().err
