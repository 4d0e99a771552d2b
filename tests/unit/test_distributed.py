"""Two gloo processes against one: the same steps, and an end when one of them is gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from training_runs import COMMAND, rows

from fastres import cli
from fastres.training import checkpoint

TESTS = Path(__file__).resolve().parents[1]
FUSED = [word for word in COMMAND if word != "--no-fused"]

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")


def _environment(**extra: object) -> dict[str, str]:
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        **{key: str(value) for key, value in extra.items()},
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _two_processes(event: str, out: Path) -> list[tuple[int, str]]:
    """Exit code and stderr of both ranks of distributed_run.py."""
    port = _free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "distributed_run.py"), event, str(out)],
            env=_environment(
                RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


@pytest.mark.slow
def test_torchrun_with_sync_bn_equals_one_process(tmp_path, monkeypatch):
    """Six steps of 16 images and one of 9, which two processes share as 4 and 5."""
    monkeypatch.setenv("FASTRES_BACKEND", "reference")
    options = [*FUSED, "--num-images", "105", "--epochs", "1", "--lr", "0.02", "--momentum", "0.5"]
    assert cli.main([*options, "--out", str(tmp_path / "one")]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "fastres", *options, "--sync-bn", "--out", str(tmp_path / "two")],
        env=_environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stdout
    one, two = (rows(tmp_path / name / "steps.csv") for name in ("one", "two"))
    assert len(one) == len(two) == 7
    for a, b in zip(one, two, strict=True):
        assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=1e-3)
    a, b = (rows(tmp_path / name / "epochs.csv")[0] for name in ("one", "two"))
    assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=1e-2)
    assert float(b["train_loss"]) == pytest.approx(float(a["train_loss"]), rel=1e-3)
    one, two = (checkpoint.load(tmp_path / name / "last.pt") for name in ("one", "two"))
    assert len(two["rng"]) == 2
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run(tmp_path):
    (code, error), (dead, _) = _two_processes("die", tmp_path)
    assert dead == 9
    assert code == 1
    assert "fastres train: rank 0: another process is gone or does not answer" in error


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_at_the_same_step(tmp_path, capsys):
    for code, error in _two_processes("sigterm", tmp_path):
        assert code == 143
        assert "stopped by SIGTERM at epoch 1, step 3/6" in error
    assert checkpoint.load(tmp_path / "last.pt")["progress"]["iteration"] == 3
    # one process goes on where two stopped
    assert cli.main([*COMMAND, "--out", str(tmp_path), "--resume", "auto"]) == 0
    assert "at epoch 1, step 3" in capsys.readouterr().out
    assert [row["iteration"] for row in rows(tmp_path / "steps.csv")] == [
        str(number) for number in range(1, 13)
    ]
