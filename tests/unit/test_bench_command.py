"""`fastres bench` as a whole, in small: wrong numbers, crashes, a kill, what it prints."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastres import cli
from fastres.bench import isolated, peers, results, rows, sweep
from fastres.bench.peers import EAGER, EAGER_GRAPH, FUSED, OPTIMIZED

# adapters of a user, three of them broken
ADAPTERS = """
import os, signal
import torch
from fastres.bench.peers import EAGER, PEERS, Peer

def wrong_gradient(workload):
    step = PEERS[EAGER].make(workload)
    step.module.fc.weight.register_hook(lambda gradient: 1.05 * gradient)
    return step

def crash(workload):
    os.kill(os.getpid(), signal.SIGSEGV)

def out_of_memory(workload):
    raise torch.OutOfMemoryError("tried to allocate 80 GiB")

anywhere = lambda workload: None
WRONG = Peer("wrong", wrong_gradient, anywhere)
CRASH = Peer("crash", crash, anywhere)
FULL = Peer("full", out_of_memory, anywhere)
NEVER = Peer("never", crash, lambda workload: "it is Tuesday")
"""
PREFIX = "benched_adapters:"


@pytest.fixture(autouse=True)
def _adapters(tmp_path, monkeypatch):
    (tmp_path / "benched_adapters.py").write_text(ADAPTERS)
    monkeypatch.syspath_prepend(tmp_path)


def bench(path, *arguments) -> int:
    return cli.main(
        ["bench", *arguments, "--out", str(path), "--threads", "1", "--any-commit"]
    )  # fmt: skip


def statuses(path):
    return [
        (name, implementation, row["status"])
        for name, case in results.read(path)["cases"].items()
        for implementation, row in case["implementations"].items()
    ]


def test_planted_errors_get_no_speed_and_the_others_do(tmp_path, capsys):
    path = tmp_path / "out" / "planted.json"
    broken = [PREFIX + name for name in ("WRONG", "CRASH", "FULL", "NEVER")]
    code = bench(path, "train", "--model", "basic10", "--batch", "2", "--rounds", "2",
                 "--floor", "--implementations", FUSED, *broken)  # fmt: skip
    assert code == 1
    (case,) = results.read(path)["cases"].values()
    found = case["implementations"]
    assert list(found) == [EAGER, FUSED, *broken]
    assert [row["status"] for row in found.values()] == [
        "measured", "measured", "refused", "failed", "failed", "skipped",
    ]  # fmt: skip
    told = capsys.readouterr().out
    reasons = ("relative error", "SIGSEGV (while preparing", "80 GiB", "it is Tuesday")
    for name, reason in zip(broken, reasons, strict=True):
        assert reason in found[name]["reason"]
        assert "seconds" not in found[name]
        assert "per_second" not in found[name]
        assert found[name].get("times_faster_than") is None
        (line,) = (line for line in told.splitlines() if line.startswith(f"  {name}"))
        assert reason in line
    ours = found[FUSED]
    assert ours["seconds"]["samples"] == 2
    assert set(ours["times_faster_than"]) == {EAGER}
    assert ours["first_call_seconds"] > 0
    assert (case["kind"], case["model"], case["image_size"]) == ("train", "basic10", 32)
    assert case["environment"]["device"]["cpu"]["threads"] == 1
    if case["floor"] is not None:  # there is a Triton to record launches of
        assert case["floor"]["bytes"] > 0
        assert case["floor"]["seconds"] > 0
    assert "2 row(s) have fewer than 6 rounds" in told
    with path.with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["implementation"] for line in lines] == list(found)
    assert [line["seconds"] != "" for line in lines] == [True, True, *[False] * 4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_command_goes_on_and_ends_with_the_same_rows(tmp_path, monkeypatch, capsys):
    """Killed while its second case is prepared, with the measuring process at work."""
    path = tmp_path / "killed.json"
    arguments = ["train", "--model", "basic10", "--batch", "2..4", "--rounds", "2",
                 "--implementations", FUSED]  # fmt: skip
    child = os.fork()
    if child == 0:
        event = sweep._Attempt.on_event

        def die(self, content):
            if content == ("preparing", FUSED) and len(results.read(path)["cases"]) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            event(self, content)

        sweep._Attempt.on_event = die
        bench(path, *arguments)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    first = results.read(path)["cases"]
    assert len(first) == 1
    later = "train basic10 fp32, batch 4, 32px"
    assert list(results.read(path)["sweep"]["not_reached"]) == [later]
    assert bench(path, *arguments) == 0
    expected = [
        (f"train basic10 fp32, batch {batch}, 32px", name, "measured")
        for batch in (2, 4)
        for name in (EAGER, FUSED)
    ]
    assert statuses(path) == expected
    assert first.items() <= results.read(path)["cases"].items()
    assert "holds 1 of 2 cases" in capsys.readouterr().err
    # once more: nothing is left, and the table is the same
    monkeypatch.setattr(isolated, "call", lambda *a, **k: pytest.fail("measured again"))
    assert bench(path, *arguments) == 0
    assert statuses(path) == expected
    # other options, the same file
    assert bench(path, *arguments, "--dtype", "bf16") == 2
    assert "dtype was fp32 and is bf16" in capsys.readouterr().err


def test_implementations_are_listed_with_reasons(tmp_path, capsys, monkeypatch):
    # without those whose packages take seconds to import
    few = (EAGER, FUSED, EAGER_GRAPH, OPTIMIZED)
    monkeypatch.setattr(peers, "PEERS", {name: peers.PEERS[name] for name in few})
    assert bench(tmp_path / "x", "train", "--model", "resnet20", "--list", "--device", "cpu") == 0
    told = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "CUDA graphs need a CUDA device" in told[EAGER_GRAPH]
    assert " yes " in told[FUSED]
    assert "it is for inference" in told[OPTIMIZED]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--batch", "0"], "batch must be numbers of at least 1"),
        (["train", "--model", "resnet5"], "model must be of train's"),
        (["train", "--rounds", "0"], "rounds must be above 0, got 0"),
        (["train", "--minutes", "-1"], "minutes must be above 0, got -1"),
        (["train", "--device", "tpu"], "device must be cpu or cuda, got 'tpu'"),
        (["op", "--implementations", "magic"], "implementations must be of"),
    ],
)
def test_bad_options_are_named(tmp_path, capsys, arguments, told):
    assert bench(tmp_path / "x", *arguments) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def case_of(spread, ratio_spread, load=(0.1,), rounds=9):
    """A case with a given spread of seconds and of ratios, half the range between quartiles."""

    def summary(middle, half):
        return {"median": middle, "lower_quartile": middle * (1 - half), "samples": rounds,
                "upper_quartile": middle * (1 + half), "iqr": 2 * half * middle,
                "minimum": middle}  # fmt: skip

    ratio = {**summary(1.3, ratio_spread), "low95": 1.1, "high95": 1.5}
    ours = {"status": "measured", "seconds": summary(0.2, spread), "per_second": 40,
            "times_faster_than": {EAGER: ratio}}  # fmt: skip
    eager = {"status": "measured", "seconds": summary(0.26, spread), "per_second": 31}
    return {
        "batch": 8, "floor": None, "implementations": {EAGER: eager, FUSED: ours},
        "environment": {"load_average": list(load), "device": {"cpu": {"logical_cpus": 2}}},
    }  # fmt: skip


def test_a_quiet_machine_gets_figures():
    case = case_of(0.01, 0.01)
    _, ours = rows.table_rows(case)
    assert ours[1:5] == ["200 ms", "±1.0%", "40", "1.300 [1.10, 1.50]"]
    assert rows.notes({"a": case}) == [
        "quiet: the middle half of every ratio is within 5% (1 of 1)"
    ]


def test_a_noisy_machine_gets_ranges_and_is_called_noisy():
    case = case_of(0.2, 0.1, load=(7.4,))
    _, ours = rows.table_rows(case)
    assert ours[1:5] == ["160 ms to 240 ms", "±20.0% noisy", "33.33 to 50", "1.10 to 1.50 noisy"]
    (told,) = rows.notes({"a": case})
    assert told.startswith("NOISY: 1 of 1 figures are spread by more than 5% to either side")
    assert "The load was 7.4 on 2 CPUs. Measure again on a quiet machine." in told


def test_a_drift_that_cancels_in_the_ratio_is_not_called_noisy():
    case = case_of(0.2, 0.01)
    _, ours = rows.table_rows(case)
    assert ours[1] == "160 ms to 240 ms"
    assert ours[4] == "1.300 [1.10, 1.50]"
    assert rows.notes({"a": case})[0].startswith("quiet: ")


def test_pytest_measures_through_the_same_code_and_records_the_same_form(tmp_path):
    """benchmarks/conftest.py beside one tiny benchmark."""
    conftest = Path(__file__).parents[2] / "benchmarks" / "conftest.py"
    (tmp_path / "conftest.py").write_text(conftest.read_text())
    (tmp_path / "test_tiny.py").write_text(
        "from functools import partial\n"
        "import pytest\n"
        "from fastres.bench import EAGER, FUSED, cases\n"
        "from fastres.bench.case import Case\n"
        "CASE = Case(partial(cases.network, 'basic10', 2, 32), 2, extra=())\n"
        "@pytest.mark.parametrize('who', [EAGER, FUSED])\n"
        "def test_tiny(show, who):\n"
        "    show('tiny', CASE, who)\n"
    )
    # a worker of xdist's measures nothing
    outside = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--benchmark-only", "--record", "--threads", "1", "-q",
         "-p", "no:cacheprovider", str(tmp_path)],
        check=False, capture_output=True, text=True, cwd=tmp_path, env=outside,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    (path,) = (tmp_path / "results").glob("*.json")
    case = results.read(path)["cases"]["tiny"]
    assert (case["kind"], case["model"], case["image_size"]) == ("train", "basic10", 32)
    assert case["floor"] is None
    assert case["implementations"][FUSED]["seconds"]["samples"] == 2
    assert "tiny: basic10 fp32, batch 2, 32x32 on cpu, 2 interleaved rounds" in done.stdout
