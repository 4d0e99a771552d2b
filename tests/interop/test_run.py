"""`fastres run SCRIPT` and `import fastres.auto`, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interop.networks import timm, torchvision
from interop.works_with import works_with

import fastres
from fastres.interop.construction import Fused
from fastres.training.run import NOTHING

SCRIPTS = Path(__file__).parent / "scripts"
ONE_LINE = "fastres: fused {} blocks of 1 {} ResNet"


def python(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def fastres_run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return python("-m", "fastres", "run", *arguments, cwd=cwd)


def untouched(script: Path, folder: Path, monkeypatch, *arguments: str) -> list[float]:
    """The losses of the script as it is; in this process, which is the quicker way."""
    folder.mkdir()
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(folder), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    return json.loads((folder / "losses.json").read_text())


def deviation(found: list[float], wanted: list[float]) -> float:
    """The largest relative difference of any step's loss."""
    assert len(found) == len(wanted)
    return max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))


# Script, its arguments, the checkpoint, what is said, the losses' tolerance. The rates are such
# that the unfused script in channels_last, which only sums in another order, keeps to the
# tolerance too. (At 1e-2 in fp32 a ReLU that decides otherwise has it off by 0.1 in 50 steps.)
CURVES = {
    "torchvision, fp64": (
        "torchvision_train.py", ["--dtype", "float64", "--lr", "1e-2", "--workers", "1"],
        "checkpoint.pth", ONE_LINE.format(4, "torchvision"), 1e-9,
    ),
    "timm, fp32": (
        "timm_train.py", ["--lr", "1e-3"], "last.pth.tar", ONE_LINE.format(8, "timm"), 1e-5,
    ),
}  # fmt: skip


def keys(checkpoint: dict) -> list[str]:
    """All keys of nested dictionaries."""
    found = []
    for key, value in checkpoint.items():
        found += [str(key)]
        if isinstance(value, dict):
            found += [f"{key}/{inner}" for inner in keys(value)]
    return found


@works_with("training scripts untouched: `fastres run SCRIPT ARGS`, 50 steps loss by loss")
@pytest.mark.parametrize("case", CURVES)
def test_loss_curves(case, tmp_path, monkeypatch):
    script, arguments, checkpoint, line, tolerance = CURVES[case]
    script = SCRIPTS / script
    assert "fastres" not in script.read_text()
    alone = [word for word in arguments if word not in ("--workers", "1")]
    plain = untouched(script, tmp_path / "plain", monkeypatch, *alone)
    other = untouched(script, tmp_path / "other", monkeypatch, *alone, "--channels-last")
    (tmp_path / "fused").mkdir()
    done = fastres_run(script, "--out", tmp_path / "fused", *arguments)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == line + "\n"
    fused = json.loads((tmp_path / "fused" / "losses.json").read_text())
    assert len(fused) == 50
    assert fused[-1] != fused[0]
    assert deviation(other, plain) < tolerance
    assert deviation(fused, plain) < tolerance
    states = [torch.load(tmp_path / name / checkpoint) for name in ("plain", "fused")]
    assert keys(states[1]) == keys(states[0])


@works_with("`fastres run --amp bf16`: a script without autocast trains in bf16")
def test_amp(tmp_path, monkeypatch):
    script = SCRIPTS / "torchvision_train.py"
    arguments = ["--steps", "12", "--lr", "1e-3"]
    plain = untouched(script, tmp_path / "plain", monkeypatch, *arguments)
    done = fastres_run("--amp", "bf16", script, "--out", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "losses.json").read_text())
    assert 1e-6 < deviation(found[:1], plain[:1]) < 0.05, "not in bf16, or not the same network"
    assert deviation(found, plain) < 0.3
    state = torch.load(tmp_path / "checkpoint.pth")["model"]
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


@works_with("scripts that never make a ResNet, their arguments, exit codes and tracebacks")
def test_a_script_as_python_runs_it(tmp_path):
    script = SCRIPTS / "what_is_there.py"
    arguments = ["exit", "7", "--amp", "-h", "--", "--version", "a b"]
    done = fastres_run(os.path.relpath(script, tmp_path), *arguments, cwd=tmp_path)
    assert done.returncode == 7, done.stderr
    said = json.loads(done.stdout.splitlines()[0])
    assert said == {
        "argv": arguments, "argv0": script.name, "file": str(script), "main": True,
        "helper": "beside", "annotations": {},
    }  # fmt: skip
    assert done.stdout.splitlines()[1] == "at the end: __main__, True, fail"
    assert done.stderr == NOTHING + "\n" == f"{Fused()}\n"


@works_with("scripts that set environment variables before they import torch")
def test_torch_is_the_scripts_to_import():
    done = subprocess.run(
        [sys.executable, "-m", "fastres", "run", SCRIPTS / "before_torch.py"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ONE_LINE.format(8, "torchvision") + "\n"
    assert json.loads(done.stdout) == {
        "before": False, "light": True, "threads": 1, "fused": True, "callable": True,
        "names": sorted(fastres.__all__), "star": True, "nonsense": False,
    }  # fmt: skip


def test_the_command_itself_imports_no_torch():
    done = python("-X", "importtime", "-m", "fastres", "run", "--help")
    assert done.returncode == 0, done.stderr
    assert "multiprocessing.spawn" in done.stderr  # of the module of the command
    assert not re.search(r"\| +torch(\.|$)", done.stderr, re.MULTILINE)


def test_a_script_that_fails(tmp_path):
    script = SCRIPTS / "what_is_there.py"
    done = fastres_run(script, "raise")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert f'File "{script}", line 12, in fail' in done.stderr
    assert "RuntimeError: a mistake of the script's own" in done.stderr
    assert done.stderr.count("nothing was fused") == 1


def test_a_script_that_is_not_there(capsys):
    from fastres import cli

    assert cli.main(["run", "nowhere.py"]) == 2
    assert capsys.readouterr().err == (
        "fastres run: SCRIPT must be a Python file, got nowhere.py\n"
    )


@works_with("`fastres run` of scripts that make their networks in processes they spawn")
def test_spawned_processes(tmp_path):
    done = fastres_run(SCRIPTS / "spawned.py", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == "fastres.interop.torchvision_resnet"
    assert done.stderr == "fastres: no ResNet in this process; 1 that it spawned fuse theirs\n"


AUTO = """
import sys
import warnings
warnings.simplefilter("error")
{first}
import torchvision.models, timm
from fastres.layers import Block
for model in (
    torchvision.models.resnet18(),
    timm.create_model("resnet18"),
    timm.create_model("fastres_resnet18"),
):
    assert sum(isinstance(module, Block) for module in model.modules()) == 8
class Own(torchvision.models.ResNet):
    pass
own = Own(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
assert not any(isinstance(module, Block) for module in own.modules())
from fastres.interop.construction import done
print(done)
"""


@works_with("`import fastres.auto`, before and after torchvision and timm are imported")
@pytest.mark.parametrize(
    "first",
    [
        "import fastres.auto\nassert not {'torchvision', 'timm'} & set(sys.modules)",
        "import torchvision, timm, fastres.auto",
    ],
    ids=["before", "after"],
)
def test_auto(first):
    done = python("-c", AUTO.format(first=first))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fastres: fused 24 blocks of 1 torchvision ResNet, 2 timm ResNet\n"


def test_importing_fastres_is_quick_and_imports_no_other_library():
    program = (
        "import sys, time, torch\n"
        "started = time.process_time()\n"
        "import fastres\n"
        "assert time.process_time() - started < 0.3, time.process_time() - started\n"
        "assert not {'torchvision', 'timm'} & set(sys.modules)\n"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


def test_nothing_of_this_is_left_in_this_process():
    assert torchvision.models.ResNet.__init__.__module__ == "torchvision.models.resnet"
    assert timm.models.ResNet.__init__.__module__ == "timm.models.resnet"
    assert not hasattr(torchvision.models.ResNet.__init__, "__wrapped__")
