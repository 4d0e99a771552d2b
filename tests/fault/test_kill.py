"""SIGKILL at random points, some inside a save: the end is the uninterrupted run's, bitwise."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import COMMAND, assert_same_run

from fastres import cli

PROGRAM = Path(__file__).with_name("killed_run.py")
SAVE_EVERY = ["--save-every", "2"]


def test_killed_six_times_and_resumed(tmp_path):
    draw = random.Random(20)
    plan = [
        ["step", draw.randint(1, 3)],
        ["write", draw.randint(1, 3)],
        ["fsync", draw.randint(2, 7)],
        ["before-rename", draw.randint(1, 2)],
        ["after-rename", draw.randint(1, 2)],
        ["timer", draw.uniform(0.05, 1.0)],
    ]
    draw.shuffle(plan)
    arguments = [*COMMAND, *SAVE_EVERY, "--epochs", "3"]
    killed = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(plan), *arguments, "--resume", "auto",
         "--out", str(tmp_path / "killed")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert killed.returncode == 0, killed.stderr
    codes = json.loads(killed.stdout.splitlines()[-1])
    assert codes[-1] == 0, killed.stdout + killed.stderr
    # the timer may come after the end; every other life must have died as planned
    planned = zip((moment for moment, _ in plan), codes, strict=False)
    assert {code for moment, code in planned if moment != "timer"} == {-signal.SIGKILL}, codes
    assert cli.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


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
