"""SIGKILL at random points, some inside a save: the end is the uninterrupted run's, bitwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import COMMAND, tiny_config, tiny_trainer

from fastres.training.errors import TrainingError
from fastres.training.reporter import Silent

PROGRAM = Path(__file__).with_name("killed_run.py")


@pytest.mark.slow
def test_killed_twenty_times_and_resumed():
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--kills", "20", "--seed", "6"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    deaths = [line.split()[4] for line in lines if line.startswith("kill ")]
    assert len(deaths) == 20
    inside_a_save = {"write", "fsync", "before-rename", "after-rename", "fsync-folder"}
    assert inside_a_save | {"call", "timer"} == set(deaths)
    assert lines[-1].endswith("weights, momenta, generators and logs bitwise equal")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group(tmp_path, signum):
    """As a scheduler and a terminal send it: the loader's workers get it as well."""
    log = tmp_path / "steps.csv"
    process = subprocess.Popen(
        [sys.executable, "-m", "fastres", *COMMAND, "--epochs", "1000", "--workers", "1",
         "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        limit = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") > 4):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < limit
            time.sleep(0.1)
        os.killpg(process.pid, signum)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signum
    assert f"fastres train: stopped by {signum.name} at epoch" in error
    assert "Traceback" not in error
    assert (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("step", [2, 3])
def test_a_loading_process_that_is_killed_is_named(tmp_path, step):
    class Killing(Silent):
        def step(self, done: int, loss: float | None) -> None:
            if done == step:
                loader = trainer._train_loader._loader._loader
                os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)

    config = tiny_config(tmp_path, workers=1, num_images=1000, milestones=None)
    trainer = tiny_trainer(config, reporter=Killing())
    with pytest.raises(
        TrainingError, match=r"a process that loads images died: .* fewer --workers"
    ):
        trainer.run()
