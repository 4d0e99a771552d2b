"""A function in a fresh process: what it returns, reports, raises, and how its death is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastres.bench import isolated
from fastres.bench.isolated import IsolatedError, call


def doubled(report, number):
    print("this goes to no terminal")
    report("began")
    report({"at": number})
    return 2 * number


def raises(report):
    raise ArithmeticError("no such luck")


def crashes(report):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(report, path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(path).write_text(f"{os.getpid()} {child.pid}")
    report("hanging")
    time.sleep(60)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(*pids: int) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.02)
    return False


def test_events_come_in_order_and_then_the_result(capfd):
    events = []
    assert call(doubled, 21, on_event=events.append) == 42
    assert events == ["began", {"at": 21}]
    assert "no terminal" not in capfd.readouterr().out


def test_an_exception_is_told_with_its_place():
    with pytest.raises(IsolatedError, match="ArithmeticError: no such luck") as found:
        call(raises)
    assert not found.value.crashed
    assert "test_bench_isolated.py:" in str(found.value)
    assert "Traceback" in found.value.output


def test_a_crash_names_its_signal_and_last_words():
    with pytest.raises(IsolatedError, match="ended by SIGSEGV") as found:
        call(crashes)
    assert found.value.crashed
    assert "last words" in found.value.output
    assert isolated._ending(-9) == "was ended by SIGKILL, as the system does when memory runs out"
    assert isolated._ending(3) == "ended with exit code 3"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_hang_is_stopped_with_the_children(tmp_path):
    path = tmp_path / "pids"
    with pytest.raises(IsolatedError, match="stopped after 6 s"):
        call(hangs, str(path), seconds=6)
    assert gone(*map(int, path.read_text().split()))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_caller_leaves_nothing_running(tmp_path):
    path = tmp_path / "pids"
    caller = os.fork()
    if caller == 0:
        call(hangs, str(path), on_event=lambda event: os.kill(os.getpid(), signal.SIGKILL))
    assert os.WTERMSIG(os.waitpid(caller, 0)[1]) == signal.SIGKILL
    assert gone(*map(int, path.read_text().split()))
