"""The `fastres` command: subcommands, exit codes, one line for bad input."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from training_runs import COMMAND, rows

from fastres import cli


def _fails(capsys, *arguments):
    code = cli.main(arguments)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return code, lines[0]


def test_train_and_its_files(tmp_path, capsys):
    assert cli.main([*COMMAND, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "resnet20: 269,722 parameters, plain PyTorch, cpu" in out
    assert "epoch 2/2" in out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "last.pt", "best.pt", "epochs.csv", "steps.csv", ".lock",
    }  # fmt: skip
    assert len(rows(tmp_path / "run" / "epochs.csv")) == 2


def test_train_fused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FASTRES_BACKEND", "reference")
    fused = [word for word in COMMAND if word != "--no-fused"]
    code = cli.main([*fused, "--epochs", "1", "--milestones", "1", "--out", str(tmp_path)])
    assert code == 0
    assert "fused (reference), cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet21"], "model 'resnet21': name must be one of"),
        (["--model", "resnet20", "--shortcut", "D"], "model 'resnet20': shortcut must be"),
        (["--model", "resnet20", "--variant", "v1"], "model 'resnet20': .*variant"),
        (["--amp", "fp16"], "amp 'fp16' needs a GPU; on a CPU use 'bf16'"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--sync-bn"], "sync_bn on a CPU needs fused"),
        (["--batch-size", "1"], "batch_size must be at least 2 per process"),
        (["--resume", "none.pt"], "cannot read the checkpoint none.pt: No such file"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, capsys, arguments, message):
    code, line = _fails(capsys, *COMMAND, *arguments, "--out", str(tmp_path / "run"))
    assert code == 2
    assert line.startswith("fastres train: ")
    assert re.search(message, line), line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_gpu_that_is_not_there(capsys):
    code, line = _fails(capsys, *COMMAND, "--device", "cuda")
    assert code == 2
    assert "torch finds no usable CUDA device" in line


def test_forced_backend_that_cannot_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FASTRES_BACKEND", "magic")
    fused = [word for word in COMMAND if word != "--no-fused"]
    code, line = _fails(capsys, *fused, "--out", str(tmp_path))
    assert code == 2
    assert "FASTRES_BACKEND must be one of" in line


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path, capsys):
    quick = [*COMMAND, "--epochs", "1", "--milestones", "1", "--out", str(tmp_path)]
    assert cli.main(quick) == 0
    before = (tmp_path / "last.pt").read_bytes()
    capsys.readouterr()
    code, line = _fails(capsys, *quick)
    assert code == 2
    assert "holds a run already" in line
    assert (tmp_path / "last.pt").read_bytes() == before
    assert cli.main([*quick, "--resume", "auto"]) == 0
    assert "nothing left to train" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    code, line = _fails(capsys, *COMMAND, "--out", str(tmp_path / "file" / "run"))
    assert code == 1
    assert "cannot make the folder" in line


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["train", "--data", "x"], ["train", "--data", "synthetic", "--milestones", "a"]],
)
def test_usage_errors_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as info:
        cli.main(arguments)
    assert info.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_of_train(capsys):
    with pytest.raises(SystemExit) as info:
        cli.main(["train", "--help"])
    assert info.value.code == 0
    assert "--batch-size" in capsys.readouterr().out


def test_loading_the_command_loads_no_engine():
    """What a subcommand needs is imported when it runs; nothing of it at `import fastres.cli`."""
    program = (
        "import sys, fastres.cli\n"
        "heavy = {'torchvision', 'sklearn', 'rich', 'matplotlib', 'tensorboard'}\n"
        "loaded = (heavy | {'fastres.training.engine'}) & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
