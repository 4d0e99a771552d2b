"""Measures each case once, all implementations in turns, and hands every test its own times.

pytest-benchmark runs one function to the end before the next. On a machine whose speed drifts that
compares different machines. So a case is measured as a whole by `fastres.bench`, and the benchmark
fixture is given the times of one implementation through a clock that replays them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from fastres.bench import EAGER, Comparison, environment, results, table
from fastres.bench.case import Case
from fastres.bench.compare import MEASURED, SKIPPED

RESULTS = Path(__file__).resolve().parent / "results"
_CASES = pytest.StashKey[dict]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastres")
    group.addoption("--threads", type=int, default=2, help="threads of a CPU measurement (2)")
    group.addoption(
        "--record",
        action="store_true",
        default=os.environ.get("FASTRES_RECORD", "") not in ("", "0"),
        help="write benchmarks/results/DEVICE.json if everything passes (also FASTRES_RECORD=1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CASES] = {}


@pytest.fixture(scope="session", autouse=True)
def _threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield
    torch.set_num_threads(before)


class _Replay:
    """A clock that pytest-benchmark reads before and after each call of `advance`."""

    def __init__(self) -> None:
        self.samples: Sequence[float] = ()
        self._now, self._next = 0.0, 0

    def __call__(self) -> float:
        return self._now

    def load(self, samples: Sequence[float]) -> None:
        self.samples, self._now, self._next = samples, 0.0, 0

    def advance(self) -> None:
        self._now += self.samples[self._next % len(self.samples)]
        self._next += 1


replayed = _Replay()


@pytest.fixture
def show(request: pytest.FixtureRequest, benchmark) -> Callable[[str, Case, str], Comparison]:
    """show(name, case, implementation): enters its times as this test's; skips or fails with the
    reason where it has none."""

    def enter(name: str, case: Case, implementation: str) -> Comparison:
        if implementation in case.skipped:
            pytest.skip(f"{implementation}: {case.skipped[implementation]}")
        comparison = case()
        if name not in request.config.stash[_CASES]:  # the first to ask
            request.config.stash[_CASES][name] = comparison
            _print(request, name, comparison)
        entry = comparison.entries[implementation]
        if entry.status == SKIPPED:
            pytest.skip(f"{implementation}: {entry.reason}")
        assert entry.status == MEASURED, f"{implementation} {entry.status}: {entry.reason}"
        benchmark.group = name
        benchmark.extra_info["implementation"] = implementation
        benchmark.extra_info["items_per_step"] = comparison.workload.batch
        benchmark.extra_info["first_call_seconds"] = entry.first_call_seconds
        benchmark.extra_info["page_faults_per_step"] = entry.page_faults
        if implementation != EAGER:
            ratio = comparison.ratio(implementation, EAGER)
            benchmark.extra_info[f"times faster than {EAGER}"] = ratio.as_dict()
        if entry.memory:
            benchmark.extra_info["memory"] = entry.memory
        replayed.load(entry.samples)
        benchmark.pedantic(replayed.advance, rounds=len(entry.samples), iterations=1)
        return comparison

    return enter


def _print(request: pytest.FixtureRequest, name: str, comparison: Comparison) -> None:
    """Print even where pytest captures the output of tests that pass."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{name}: ", end="")
        table.comparison_table(comparison)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=replayed))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    measured = session.config.stash[_CASES]
    if not session.config.getoption("--record") or not measured:
        return
    report = session.config.pluginmanager.getplugin("terminalreporter")
    if exitstatus != pytest.ExitCode.OK:
        report.write_line("\nnot recorded: a benchmark failed, the results of before are kept")
        return
    by_file: dict[Path, dict] = {}
    for name, comparison in measured.items():
        device = comparison.workload.device
        if device.type == "cpu":
            torch.set_num_threads(session.config.getoption("--threads"))
        path = RESULTS / f"{environment.slug(device)}.json"
        entry = by_file.setdefault(path, {"device": device, "cases": {}})
        entry["cases"][name] = comparison.as_dict()
    for path, entry in by_file.items():
        results.merge(path, entry["cases"], environment.record(entry["device"]))
        report.write_line(f"\nrecorded {len(entry['cases'])} case(s) in {path.name}")
