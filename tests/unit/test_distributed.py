"""Distributed runs of the command: two nodes of torchrun, and an end when a process is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.forked import free_port
from training_runs import COMMAND, assert_same_run, rows

from fastres import cli
from fastres.training import checkpoint
from fastres.training.distributed import World
from fastres.training.errors import TrainingError, UsageError

TESTS = Path(__file__).resolve().parents[1]
FUSED = [word for word in COMMAND if word != "--no-fused"]

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")


def two_nodes(folder: Path, arguments: list[str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of two torchrun commands on this machine, one process each.

    Each node works in a folder of its own.
    """
    port = free_port()
    nodes = []
    for node in (0, 1):
        here = folder / f"node{node}"
        here.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
            "--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", str(port),
            "-m", "fastres", *arguments,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        nodes.append(
            subprocess.Popen(
                command, cwd=here, env=environment, stdout=pipe, stderr=pipe, text=True
            )
        )
    try:
        written = [node.communicate(timeout=200) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    return [(node.returncode, *texts) for node, texts in zip(nodes, written, strict=True)]


@pytest.mark.slow
def test_two_nodes_with_sync_bn_are_one_process(tmp_path, monkeypatch):
    """Six steps of 16 images and one of 9, which two processes share as 4 and 5."""
    monkeypatch.setenv("FASTRES_BACKEND", "reference")
    options = [*FUSED, "--num-images", "105", "--epochs", "1", "--lr", "0.02", "--momentum", "0.5"]
    assert cli.main([*options, "--out", str(tmp_path / "one")]) == 0
    (code, out, error), (other, _, other_error) = two_nodes(
        tmp_path, [*options, "--sync-bn", "--out", "run"]
    )
    assert (code, other) == (0, 0), error + other_error
    assert "2 processes on cpu" in out
    assert not (tmp_path / "node1" / "run").exists()
    run = tmp_path / "node0" / "run"
    one, two = (rows(folder / "steps.csv") for folder in (tmp_path / "one", run))
    assert len(one) == len(two) == 7
    for a, b in zip(one, two, strict=True):
        assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=1e-3)
    a, b = (rows(folder / "epochs.csv")[0] for folder in (tmp_path / "one", run))
    assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=1e-2)
    assert float(b["train_loss"]) == pytest.approx(float(a["train_loss"]), rel=1e-3)
    one, two = (checkpoint.load(folder / "last.pt") for folder in (tmp_path / "one", run))
    assert len(two["rng"]) == 2
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=2e-2, atol=2e-3)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory) -> tuple[Path, dict]:
    """Where the runs of distributed_run.py are, and how they ended."""
    folder = tmp_path_factory.mktemp("scenarios")
    done = subprocess.run(
        [sys.executable, str(TESTS / "distributed_run.py"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def ended(scenarios, name: str) -> tuple[list[int], list[str]]:
    """Exit codes and stderr of every process."""
    found = scenarios[1][name]["ended"]
    return [one["code"] for one in found], [one["error"] for one in found]


LOST = "fastres train: rank 0: another process is gone or does not answer: "


@pytest.mark.slow
@pytest.mark.parametrize(("name", "other"), [("dies", 9), ("hangs", -9), ("broken image", 2)])
def test_a_run_that_loses_a_rank_ends_with_an_error(scenarios, name, other):
    """A rank that stops without closing its connections is given up after --timeout (4 s)."""
    codes, errors = ended(scenarios, name)
    assert codes == [1, other]
    assert errors[0].startswith(LOST)
    assert len(errors[0].splitlines()) == 1
    assert scenarios[1][name]["seconds"] < 60
    if name == "broken image":
        assert errors[1] == "fastres train: a.png is broken\n"


@pytest.mark.slow
def test_a_rank_that_waits_in_vain_says_so(scenarios):
    codes, errors = ended(scenarios, "alone")
    assert codes == [1]
    assert errors[0].startswith("fastres train: cannot join the 2 processes of WORLD_SIZE: Timed")
    assert len(errors[0].splitlines()) == 1


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_and_the_resumed_run_is_the_whole_one(scenarios):
    codes, errors = ended(scenarios, "stopped and resumed")
    assert codes == [143, 143, 0, 0]
    for error in errors[:2]:
        assert "stopped by SIGTERM at epoch 1, step 3/6; state saved in run/last.pt" in error
    runs = [scenarios[0] / name / "rank0" / "run" for name in ("stopped and resumed", "whole")]
    assert_same_run(*runs)
    assert len(checkpoint.load(runs[0] / "last.pt")["rng"]) == 2
    # only rank 0 needs the folder
    assert not (scenarios[0] / "stopped and resumed" / "rank1" / "run").exists()


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_rank(scenarios, tmp_path):
    """All processes start again from the last checkpoint, and the end is the whole run's."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", "1", str(TESTS / "distributed_run.py"), "--restarted", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert LOST in done.stderr
    assert "at epoch 2, step 0" in done.stdout
    assert_same_run(tmp_path, scenarios[0] / "whole" / "rank0" / "run")


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(scenarios, tmp_path, capsys):
    state = checkpoint.load(scenarios[0] / "whole" / "rank0" / "run" / "last.pt")
    checkpoint.save(tmp_path / "last.pt", state)
    options = ["--epochs", "3", "--resume", "auto", "--out", str(tmp_path)]
    assert cli.main([*COMMAND, *options]) == 0
    assert "at epoch 3, step 0" in capsys.readouterr().out
    assert [row["epoch"] for row in rows(tmp_path / "epochs.csv")] == ["3"]


@pytest.mark.slow
def test_what_rank_0_refuses_all_refuse_in_the_same_words(scenarios):
    codes, errors = ended(scenarios, "refused")
    assert codes == [2, 2, 2, 2]
    assert errors[0] == errors[1]
    assert "run holds a run already: give --resume auto or another out" in errors[0]
    assert errors[2] == errors[3]
    assert "run/last.pt is truncated or not a checkpoint of fastres" in errors[2]


@pytest.mark.slow
def test_a_run_whose_folder_is_on_another_machine_is_not_started_anew(scenarios):
    codes, errors = ended(scenarios, "elsewhere")
    assert codes == [2, 2]
    assert errors[0] == errors[1]
    assert "rank 1 has run/last.pt, but rank 0, which is to go on from it, has not" in errors[0]


def test_one_process_asks_itself():
    world = World()
    assert world.from_main(lambda: 3) == 3
    assert world.gather("a") == ["a"]
    with pytest.raises(UsageError, match="no"), world.naming_lost_peers():
        world.from_main(lambda: (_ for _ in ()).throw(UsageError("no")))
    with pytest.raises(RuntimeError, match="gloo"), world.naming_lost_peers():
        raise RuntimeError("gloo")  # with one process: some other trouble


@pytest.mark.parametrize(
    "words",
    ["[gloo/transport/tcp/pair.cc:1] Read error", "Application timeout caused pair closure"],
)
def test_a_lost_peer_is_named_and_other_errors_are_not_touched(words):
    world = World(rank=1, size=2)
    gone = "rank 1: another process is gone or does not answer"
    with pytest.raises(TrainingError, match=gone), world.naming_lost_peers():
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="shape"), world.naming_lost_peers():
        raise RuntimeError("shape mismatch")


def test_torchruns_variables_in_part(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main([*COMMAND, "--out", "nowhere"]) == 1
    assert "cannot join the 2 processes of WORLD_SIZE: " in capsys.readouterr().err
