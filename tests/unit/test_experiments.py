"""`fastres experiment`: plans, resuming after a kill, figures, the table, layer responses."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastres import cli, models
from fastres.experiments import figures, options, pool, responses
from fastres.experiments.outcome import Spread
from fastres.training import engine
from fastres.training.config import TrainConfig
from fastres.training.data import cifar, open_source, procedural

pytest.importorskip("matplotlib")

TINY = [
    "--depths", "20", "--seeds", "0,3", "--iterations", "4", "--batch-size", "6", "--num-images",
    "12", "--no-fused", "--device", "cpu", "--response-images", "4", "--threads", "1",
]  # fmt: skip
TABLES = ("curves.csv", "finals.csv", "table.csv", "table.md", "responses.csv")


def experiment(out: Path, *more: str, kind: str = "degradation", jobs: int = 1) -> int:
    return cli.main(["experiment", kind, *TINY, "--jobs", str(jobs), "--out", str(out), *more])


def figures_title(path: Path) -> str:
    """What a figure says above its panels, as its metadata keeps it."""
    from PIL import Image

    with Image.open(path) as image:
        assert min(image.size) > 600
        return image.text["Title"]


def tables(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES}


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny experiment from start to end, without a kill."""
    out = tmp_path_factory.mktemp("whole") / "experiment"
    assert experiment(out) == 0
    return out


def test_an_experiment_writes_its_numbers(whole):
    curves, finals, table = (read(whole / f"{n}.csv") for n in ("curves", "finals", "table"))
    networks = ["plain-20", "ResNet-20"]
    assert {(row["network"], row["seed"]) for row in finals} == {
        (network, seed) for network in networks for seed in ("0", "3")
    }
    assert len(curves) == 2 * len(finals)  # two epochs each
    for row in finals:
        last = [r for r in curves if (r["network"], r["seed"]) == (row["network"], row["seed"])][-1]
        assert (last["train_error"], last["test_error"]) == (row["train_error"], row["test_error"])
    assert [row["network"] for row in table] == networks
    for row in table:
        own = [float(f["test_error"]) for f in finals if f["network"] == row["network"]]
        assert float(row["test_error_mean"]) == pytest.approx(sum(own) / 2)
        assert float(row["test_error_least"]) == min(own)
    assert "not CIFAR-10" in (whole / "table.md").read_text()
    found = read(whole / "responses.csv")
    assert len(found) == 4 * 19  # four networks of 19 layers
    assert all(float(row["std"]) > 0 for row in found)


def test_training_error_in_eval_mode_is_the_one_of_the_checkpoint(whole):
    run = whole / "runs" / "resnet-20-seed3"
    model, config = responses.load_network(run / "last.pt")
    split = open_source(config).train
    images = split.images.float() / 255 - split.mean
    wrong = (model.eval()(images).argmax(1) != split.labels).float().mean()
    row = [r for r in read(whole / "finals.csv") if (r["network"], r["seed"]) == ("ResNet-20", "3")]
    assert float(row[0]["train_error_eval"]) == pytest.approx(100 * float(wrong))


def test_finished_runs_are_not_repeated(whole, capsys, monkeypatch):
    monkeypatch.setattr(engine.Trainer, "run", lambda self: pytest.fail("trained again"))
    before = tables(whole)
    assert experiment(whole) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().out
    assert tables(whole) == before


def _kill_at_step(count: int, arguments: list[str]) -> int:
    """Runs the command in a process that SIGKILLs itself at its `count`-th training step."""
    program = f"""
import os, signal, sys
from fastres import cli
from fastres.training import engine
step, left = engine.Trainer._step, {count}
def counting(*arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
engine.Trainer._step = counting
sys.exit(cli.main(sys.argv[1:]))
"""
    return subprocess.run([sys.executable, "-c", program, *arguments], timeout=300).returncode


def test_killed_and_run_again(whole, tmp_path):
    """The second kill falls into another run than the first; steps are 4 a run."""
    out = tmp_path / "killed"
    arguments = ["experiment", "degradation", *TINY, "--jobs", "1", "--out", str(out)]
    assert _kill_at_step(7, arguments) == -signal.SIGKILL
    assert len(list(out.glob("runs/*/result.json"))) == 1
    assert not (out / "table.csv").exists()
    assert experiment(out) == 0
    assert tables(out) == tables(whole)


def test_several_at_a_time_and_their_parent_killed(whole, tmp_path):
    """No process is left that writes, and what goes on one by one ends as if nothing had been."""
    out = tmp_path / "pool"
    arguments = ["experiment", "degradation", *TINY, "--jobs", "2", "--out", str(out)]
    parent = subprocess.Popen([sys.executable, "-m", "fastres", *arguments])
    try:
        limit = time.monotonic() + 120
        while not list(out.glob("runs/*/last.pt")):
            assert parent.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
    assert experiment(out) == 0  # waits for the lock, which the runs' processes hold
    assert tables(out) == tables(whole)


def _a_program(monkeypatch, text: str) -> None:
    monkeypatch.setattr(pool, "PROGRAM", ["-c", text])


def test_the_pool_hands_on_a_signal(tmp_path, monkeypatch, capsys):
    _a_program(
        monkeypatch,
        "import json, os, signal, sys, time\n"
        "order = json.loads(sys.stdin.readline())\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open(order['config']['out'] + '/saved', 'w'),"
        " os._exit(143)))\n"
        # one of the two: a second signal would end this process at once
        "if order['config']['model'] == 'plain20':\n"
        " os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n",
    )
    assert experiment(tmp_path / "x", jobs=2) == 128 + signal.SIGTERM
    assert "give the same command to go on" in capsys.readouterr().err
    assert list(tmp_path.glob("x/runs/*/saved"))


@pytest.mark.parametrize(
    ("text", "message", "code"),
    [
        ('print(\'{"error": "no room"}\'); raise SystemExit(1)', "ResNet-20 seed 0: no room", 1),
        ("raise SystemExit(7)", r"seed 0: ended with exit code 7; its last words are in", 1),
    ],
)
def test_a_run_that_fails_is_named(tmp_path, monkeypatch, capsys, text, message, code):
    _a_program(monkeypatch, text)
    assert experiment(tmp_path / "x", "--seeds", "0", "--depths", "20", jobs=2) == code
    error = capsys.readouterr().err
    assert message in error or message.replace("ResNet", "plain") in error


def test_a_loss_that_is_not_finite_names_the_run(tmp_path, capsys):
    assert experiment(tmp_path / "x", "--lr", "1e30") == 1
    assert "experiment: plain-20 seed 0: the loss is" in capsys.readouterr().err


def test_other_options_are_refused_by_name(whole, capsys):
    before = tables(whole)
    assert experiment(whole, "--lr", "0.3", "--seeds", "0,3,4") == 2
    error = capsys.readouterr().err
    assert "was started with other options: seeds was 0,3, now 0,3,4; lr was 0.04, now 0.3" in error
    assert experiment(whole, kind="shortcuts") == 2
    assert "experiment was degradation, now shortcuts" in capsys.readouterr().err
    assert tables(whole) == before


def test_threads_are_the_first_starts(whole, capsys):
    without = [word for word in TINY if word not in ("--threads", "1")]
    assert cli.main(["experiment", "degradation", *without, "--out", str(whole)]) == 0
    assert "at a time of 1 thread," in capsys.readouterr().out


def test_a_damaged_log_is_named(whole, tmp_path, capsys):
    out = tmp_path / "x"
    shutil.copytree(whole, out)
    log = out / "runs" / "plain-20-seed3" / "epochs.csv"
    log.write_bytes(log.read_bytes()[:120])
    assert experiment(out) == 2
    error = capsys.readouterr().err
    assert f"plain-20 seed 3: {log}" in error
    assert "delete the run's folder to train it again" in error
    shutil.rmtree(log.parent)
    assert experiment(out) == 0
    assert tables(out) == tables(whole)


def test_a_start_that_was_killed_at_once_is_no_obstacle(tmp_path, capsys):
    (tmp_path / ".experiment.json.h4lf").write_text('{"format": "fastr')
    assert experiment(tmp_path, "--lr", "1e30") == 1  # it got as far as training
    (tmp_path / "experiment.json").write_text("{")
    assert experiment(tmp_path) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_folder_of_other_files_is_refused(tmp_path, capsys):
    (tmp_path / "photo.jpg").touch()
    assert experiment(tmp_path) == 2
    assert "out must be a new folder or an experiment's" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(tmp_path, capsys, monkeypatch):
    import fcntl

    from fastres.experiments import experiment as module

    monkeypatch.setattr(module, "_LOCK_PATIENCE", 0.0)
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert experiment(tmp_path) == 2
    assert f"an experiment is going on in {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depths", "20,21"], "depths must be out of 20, 32, 44, 56, 110, got 21"),
        (["--seeds", "1,1"], "seeds must differ, got 1,1"),
        (["--iterations", "0"], "iterations must be at least 1, got 0"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--data", "cifar10"], "data 'cifar10' needs data_dir"),
        (["--data", "cifar10", "--quick"], "quick is for data 'procedural' only"),
        (["--response-images", "-1"], "response_images must be 0 or more, got -1"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, capsys, options, message):
    out = tmp_path / "x"
    assert cli.main(["experiment", "degradation", "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_figures_say_procedural(whole):
    for name in ("errors.png", "responses.png"):
        title = figures_title(whole / name)
        assert "Procedural image set (12 images generated from seed 0, not CIFAR-10)" in title


def test_lines_of_the_figure_are_the_errors(whole, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path, title: drawn.append(figure))
    assert experiment(whole) == 0
    rows = [r for r in read(whole / "curves.csv") if r["network"] == "plain-20"]
    plain, residual = drawn[0].axes
    assert "Procedural image set (12 images" in drawn[0].get_suptitle()
    assert (plain.get_title(), residual.get_title()) == ("plain", "residual")
    thin, bold = sorted(plain.lines, key=lambda line: line.get_linewidth())[-2:]
    for line, column in ((thin, "train_error"), (bold, "test_error")):
        last = [float(r[column]) for r in rows if r["epoch"] == "2"]
        assert line.get_ydata()[-1] == pytest.approx(sum(last) / 2)


def test_shortcuts_are_side_by_side(tmp_path):
    assert experiment(tmp_path / "x", "--seeds", "0", kind="shortcuts") == 0
    assert [row["network"] for row in read(tmp_path / "x" / "table.csv")] == [
        "ResNet-20 A", "ResNet-20 B", "ResNet-20 C",
    ]  # fmt: skip
    result = json.loads((tmp_path / "x" / "runs" / "resnet-20-c-seed0" / "result.json").read_text())
    assert result["shortcut"] == "C"


def test_with_cifars_files_it_is_the_papers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cifar, "RECORDS", 4)
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = generator.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(4)
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    parser = argparse.ArgumentParser()
    options.add_arguments(parser, "degradation")
    given = ["--data", "cifar10", "--data-dir", str(tmp_path), "--device", "cpu"]
    args = parser.parse_args([*given, "--depths", "20,110", "--out", str(tmp_path / "x")])
    args.kind = "degradation"
    runs = options.make_plan(args).runs()
    assert len(runs) == 2 * 2 * 3
    for run in runs:
        config = run.config
        assert (config.iterations, config.milestones) == (64_000, (32_000, 48_000))
        assert (config.batch_size, config.lr, config.validation) == (128, 0.1, 0)
        assert config.warmup_iterations == (400 if run.network.depth == 110 else 0)
    tiny = [*given, "--depths", "20", "--seeds", "1", "--iterations", "2", "--batch-size", "10"]
    out = tmp_path / "out"
    arguments = ["experiment", "degradation", *tiny, "--no-fused", "--jobs", "1"]
    assert cli.main([*arguments, "--response-images", "0", "--out", str(out)]) == 0
    assert "CIFAR-10; 2 iterations of batch 10; one seed." in capsys.readouterr().out
    assert "rocedural" not in (out / "table.md").read_text()
    assert "rocedural" not in str(figures_title(out / "errors.png"))
    # the files may lie elsewhere when it goes on
    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("*.bin"):
        path.rename(tmp_path / "moved" / path.name)
    (out / "runs" / "plain-20-seed1" / "result.json").unlink()
    before = (out / "table.csv").read_bytes()
    arguments[arguments.index(str(tmp_path))] = str(tmp_path / "moved")
    assert cli.main([*arguments, "--response-images", "0", "--out", str(out)]) == 0
    assert (out / "table.csv").read_bytes() == before


def test_spread_and_comparison():
    assert str(Spread.of([1.0, 3.0])) == "2.00 ± 1.41"
    assert str(Spread.of([1.0])) == "1.00"
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("resnet20", {"shortcut": "B"}, 19),
        ("plain20", {}, 19),
        ("resnet18", {"num_classes": 10}, 16),
        ("resnet50", {"num_classes": 10}, 16),
    ],
)
def test_responses_are_what_hooks_see(name, options, layers):
    fused = models.create(name, fused=True, **options)
    model = models.create(name, fused=False, **options)
    model.load_state_dict(fused.state_dict())
    images = torch.randn(5, 3, 32, 32)
    outputs = {}

    def keep(name):
        def hook(module, inputs, output):
            outputs[name] = output.clone()  # the ReLU after it may work in place

        return hook

    modules = dict(model.named_modules())
    for key, module in modules.items():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            norm = modules[key.replace("conv", "bn")]
            norm.register_forward_hook(keep(key.replace("conv", "bn")))
    with torch.no_grad():
        model.eval()(images)
    for network in (fused.train(), models.create(name, fused=False, **options)):
        network.load_state_dict(fused.state_dict())
        found = responses.layer_responses(network, images.split([2, 3]))
        assert [response.name for response in found] == list(outputs)
        assert len(found) == layers
        for response in found:
            expected = outputs[response.name].double().std(unbiased=False)
            assert response.std == pytest.approx(float(expected), rel=1e-4)
        assert network.training
        assert not any(module._forward_hooks for module in network.modules())


def test_responses_of_checkpoints(whole, tmp_path, capsys):
    paths = [
        str(whole / "runs" / f"{name}-seed0" / "last.pt") for name in ("plain-20", "resnet-20")
    ]
    arguments = ["experiment", "responses", "--checkpoint", *paths, "--images", "4"]
    assert cli.main([*arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert "19 layers, procedural image set" in capsys.readouterr().out
    alone = [float(row["std"]) for row in read(tmp_path / "responses.csv")]
    inside = [
        float(row["std"])
        for row in read(whole / "responses.csv")
        if row["checkpoint"].endswith("-seed0/last.pt")
    ]
    assert alone == inside
    assert (tmp_path / "responses.png").stat().st_size > 10_000


def test_responses_need_an_image_and_a_checkpoint(tmp_path, capsys):
    arguments = ["experiment", "responses", "--checkpoint", str(tmp_path / "no.pt")]
    assert cli.main([*arguments, "--images", "0"]) == 2
    assert "images must be at least 1, got 0" in capsys.readouterr().err
    assert cli.main([*arguments, "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "cannot read the checkpoint" in capsys.readouterr().err


def test_procedural_images_are_deterministic_and_balanced():
    images, labels = procedural.make_images(1_050, seed=5, stream=0)
    again, _ = procedural.make_images(1_050, seed=5, stream=0)
    assert torch.equal(images, again)
    assert images.shape == (1_050, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert set(torch.bincount(labels).tolist()) == {105}
    for seed, stream in ((6, 0), (5, 1)):
        other, _ = procedural.make_images(50, seed, stream)
        assert not torch.equal(images[:50], other)
    # no image twice
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images)


def test_the_runs_seed_leaves_the_procedural_images_alone():
    options = {"num_images": 30, "data_seed": 2}
    one, other = (
        open_source(TrainConfig.build("procedural", seed=seed, **options)) for seed in (0, 1)
    )
    assert torch.equal(one.train.images, other.train.images)
    assert torch.equal(one.held_out.images, other.held_out.images)
    assert (len(one.train), len(one.held_out), one.num_classes) == (30, 10, 10)
    third = open_source(TrainConfig.build("procedural", num_images=30, data_seed=3))
    assert not torch.equal(one.train.images, third.train.images)


def test_procedural_images_are_no_matter_of_a_linear_rule():
    """Pixels say little, a view that no longer depends on the place says more: there is a rule."""
    linear = pytest.importorskip("sklearn.linear_model")
    images, labels = procedural.make_images(2_000, seed=0, stream=0)
    test, test_labels = procedural.make_images(1_000, seed=0, stream=1)

    def accuracy(view) -> float:
        rule = linear.RidgeClassifier(alpha=1000.0).fit(view(images), labels.numpy())
        return rule.score(view(test), test_labels.numpy())

    def spectrum(batch: torch.Tensor) -> object:
        grey = batch.float().mean(1) / 255
        return torch.fft.rfft2(grey).abs().add(1e-3).log().flatten(1).numpy()

    pixels = accuracy(lambda batch: batch.flatten(1).float().numpy() / 255)
    assert 0.11 < pixels < 0.25
    assert accuracy(spectrum) > 0.2
