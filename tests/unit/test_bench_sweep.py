"""A sweep: its rows whatever happens to a case, its file whenever it is killed, its time."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest

from fastres.bench import choice, plan, results, rows, sweep
from fastres.bench.isolated import IsolatedError
from fastres.bench.measure import LEAST_ROUNDS, Measured, empty_case, in_order
from fastres.bench.peers import COMPILED, EAGER, EAGER_NCHW, FUSED
from fastres.bench.store import Store, default_name
from fastres.bench.sweep import Options, Sweep
from fastres.training.errors import UsageError

IDENTITY = {"kind": "train", "model": ["basic10"], "batch": [1, 2, 4], "dtype": ["fp32"],
            "commit": "abc"}  # fmt: skip
NAMES = [EAGER, FUSED]


class Quiet:
    """Progress that is told everything and shows nothing."""

    def start(self, *arguments):
        pass

    event = finish = skip = start


class Clock:
    """Time that passes when a case is measured."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        return self.now


def specs(batches=(1, 2, 4)):
    return plan.specs("train", ["basic10"], batches, ["fp32"], None,
                      device="cpu", optimizer=False, keep_memory=False)  # fmt: skip


def made_up_case(order, seconds: float = 1.0):
    """A case as a measuring process returns it."""
    case = empty_case(order.spec, dict(order.without), {})
    times = {"median": seconds, "lower_quartile": seconds, "upper_quartile": seconds,
             "minimum": seconds, "maximum": seconds, "samples": 3, "iqr": 0.0, "noisy": False,
             "rounds": [seconds] * 3}  # fmt: skip
    for name in order.names:
        if name not in order.without:
            case["implementations"][name] = {
                "status": "measured", "seconds": times, "per_second": order.spec.batch / seconds,
            }  # fmt: skip
    case["implementations"] = in_order(case["implementations"], order.names)
    return Measured(case, seconds)


def make(path, found=None, *, clock=None, options=None, **identity):
    options = options or Options(NAMES)
    found = specs() if found is None else found
    store = Store(path, {**IDENTITY, **identity}, [spec.name for spec in found])
    store.load()
    extra = {} if clock is None else {"clock": clock}
    return Sweep(found, options, store, dict, Quiet(), **extra)


@pytest.fixture
def orders(monkeypatch):
    """Orders of the cases that were measured; nothing runs."""
    given = []

    def call(function, order, *, on_event, seconds):
        given.append(order)
        return made_up_case(order)

    monkeypatch.setattr(sweep.isolated, "call", call)
    return given


def table(path):
    """(case, implementation, status) of every row in a file, in order."""
    return [
        (name, implementation, row["status"])
        for name, case in results.read(path)["cases"].items()
        for implementation, row in case["implementations"].items()
    ]


def test_every_case_becomes_rows_in_order(tmp_path, orders):
    path = tmp_path / "sweep.json"
    make(path).run()
    expected = [(spec.name, name, "measured") for spec in specs() for name in NAMES]
    assert table(path) == expected
    assert results.read(path)["sweep"]["not_reached"] == {}
    lines = path.with_suffix(".csv").read_text().splitlines()
    assert lines[0].split(",") == list(rows.COLUMNS)
    assert len(lines) == 1 + len(expected)


def test_killed_at_any_point_it_ends_with_the_same_rows(tmp_path, monkeypatch):
    """Each process is killed a step later than the one before: before, while and after a case is
    measured, and on both sides of replacing each file."""
    path, measured = tmp_path / "sweep.json", tmp_path / "measured"
    steps = iter(())

    def step() -> None:
        if next(steps, None) == "die":
            os.kill(os.getpid(), signal.SIGKILL)

    def call(function, order, *, on_event, seconds):
        step()
        with measured.open("a") as file:
            file.write(order.spec.name + "\n")
        step()
        return made_up_case(order)

    real = os.replace

    def replaced(source, target):
        step()
        real(source, target)
        step()

    monkeypatch.setattr(sweep.isolated, "call", call)
    monkeypatch.setattr(os, "replace", replaced)
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            steps = iter([None] * (kills % 13) + ["die"])
            try:
                make(path).run()
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
        assert kills < 100
    assert kills >= 5
    assert table(path) == [(spec.name, name, "measured") for spec in specs() for name in NAMES]
    # a case that has its row is never measured again
    assert len(measured.read_text().split("\n")) <= kills + len(specs()) + 1
    assert len(path.with_suffix(".csv").read_text().splitlines()) == 7


def test_what_is_there_is_not_measured_again(tmp_path, orders):
    path = tmp_path / "sweep.json"
    first = make(path)
    first.run()
    before = path.read_text()
    orders.clear()
    make(path).run()
    assert orders == []
    assert json.loads(path.read_text())["cases"] == json.loads(before)["cases"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"batch": [1, 2]}, "batch was 1, 2, 4 and is 1, 2"),
        ({"commit": "def"}, "commit was abc and is def .--any-commit goes on"),
        ({"dtype": ["bf16"]}, "dtype was fp32 and is bf16"),
    ],
)
def test_another_sweep_is_refused_and_the_difference_named(tmp_path, orders, changed, told):
    path = tmp_path / "sweep.json"
    make(path).run()
    before = path.read_bytes()
    with pytest.raises(UsageError, match=told):
        make(path, **changed)
    assert path.read_bytes() == before
    store = Store(path, {**IDENTITY, "commit": "def"}, [spec.name for spec in specs()])
    assert store.load(any_commit=True)
    assert store.missing() == []


@pytest.mark.parametrize("text", ["not json", '{"cases": {}}', "[1]"])
def test_a_foreign_file_is_left_alone(tmp_path, text):
    path = tmp_path / "sweep.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="give another --out, or --fresh"):
        make(path)
    assert path.read_text() == text


def test_two_sweeps_do_not_write_one_file(tmp_path, orders):
    store = make(tmp_path / "sweep.json").store
    refused = pytest.raises(UsageError, match="another sweep is writing")
    with store.locked(), refused, store.locked():
        pass
    with store.locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_case_is_named_and_measured_later(tmp_path, monkeypatch):
    """Each case takes ten seconds of a budget of 25."""
    path, clock = tmp_path / "sweep.json", Clock()

    def call(function, order, *, on_event, seconds):
        clock.now += 10
        return replace(made_up_case(order), least_seconds=10)

    monkeypatch.setattr(sweep.isolated, "call", call)
    options = Options(NAMES, seconds=25)
    found = specs((1, 2, 4))
    make(path, found, clock=clock, options=options).run()
    told = results.read(path)["sweep"]["not_reached"]
    assert list(told) == [found[1].name, found[2].name]
    # twice the images need twice the time
    assert told[found[1].name] == "15 s were left, it needs about 20 s"
    make(path, found, clock=clock, options=Options(NAMES, seconds=1000)).run()
    assert results.read(path)["sweep"]["not_reached"] == {}
    assert table(path) == [(spec.name, name, "measured") for spec in found for name in NAMES]


def test_time_is_shared_fairly(tmp_path, monkeypatch):
    """What a case does not use goes to those after it."""
    clock, shares = Clock(), []

    def call(function, order, *, on_event, seconds):
        shares.append(order.seconds)
        clock.now += 10
        return replace(made_up_case(order), least_seconds=1)

    monkeypatch.setattr(sweep.isolated, "call", call)
    make(tmp_path / "a.json", clock=clock, options=Options(NAMES, seconds=90)).run()
    assert shares == [30, 40, 70]


def test_one_that_takes_the_process_along_is_left_out_of_the_next_attempt(tmp_path, monkeypatch):
    attempts = []

    def call(function, order, *, on_event, seconds):
        attempts.append(dict(order.without))
        if FUSED not in order.without:
            on_event(("preparing", EAGER))
            on_event(("preparing", FUSED))
            raise IsolatedError("the process was ended by SIGSEGV", crashed=True)
        return made_up_case(order)

    monkeypatch.setattr(sweep.isolated, "call", call)
    path = tmp_path / "sweep.json"
    make(path, specs((1,))).run()
    assert len(attempts) == 2
    (case,) = results.read(path)["cases"].values()
    assert list(case["implementations"]) == NAMES
    ours = case["implementations"][FUSED]
    assert ours["status"] == "failed"
    assert ours["reason"] == "the process was ended by SIGSEGV (while preparing fastres)"
    assert case["implementations"][EAGER]["status"] == "measured"


def test_a_case_that_fails_has_rows_and_the_sweep_goes_on(tmp_path, monkeypatch):
    def call(function, order, *, on_event, seconds):
        if order.spec.batch == 2:
            on_event(("preparing", EAGER))
            raise IsolatedError("OutOfMemoryError: tried to allocate", crashed=False)
        if order.spec.batch == 4:
            on_event(("round", 1, 3))
            raise IsolatedError(f"stopped after {seconds:.0f} s", crashed=True)
        return made_up_case(order)

    monkeypatch.setattr(sweep.isolated, "call", call)
    path = tmp_path / "sweep.json"
    made = make(path)
    made.run()
    found = [status for _, _, status in table(path)]
    assert found == ["measured", "measured", "failed", "failed", "failed", "failed"]
    reasons = [case["implementations"][EAGER].get("reason")
               for case in results.read(path)["cases"].values()]  # fmt: skip
    assert reasons == [
        None, "OutOfMemoryError: tried to allocate",
        "stopped after 3600 s (while measuring, round 1)",
    ]  # fmt: skip
    made.store.forget_failed()
    assert len(made.store.missing()) == 2


def test_what_was_measured_before_a_crash_is_kept(tmp_path, monkeypatch):
    """On a GPU those that compile come last."""

    def call(function, order, *, on_event, seconds):
        first = replace(order, names=(EAGER,))
        on_event(("partial", made_up_case(first)))
        on_event(("preparing", FUSED))
        raise IsolatedError("the process was ended by SIGABRT", crashed=True)

    monkeypatch.setattr(sweep.isolated, "call", call)
    path = tmp_path / "sweep.json"
    make(path, specs((1,))).run()
    assert [(name, status) for _, name, status in table(path)] == [
        (EAGER, "measured"), (FUSED, "failed"),
    ]  # fmt: skip


def test_what_was_measured_before_a_kill_is_there_and_measured_again(tmp_path, monkeypatch):
    def call(function, order, *, on_event, seconds):
        on_event(("partial", made_up_case(replace(order, names=(EAGER,)))))
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep.isolated, "call", call)
    path = tmp_path / "sweep.json"
    with pytest.raises(KeyboardInterrupt):
        make(path, specs((1,))).run()
    ours = next(iter(results.read(path)["cases"].values()))["implementations"][FUSED]
    assert ours == {"status": "failed", "reason": "the sweep ended before it was measured"}
    monkeypatch.setattr(sweep.isolated, "call", lambda f, order, **_: made_up_case(order))
    make(path, specs((1,))).run()
    assert {status for _, _, status in table(path)} == {"measured"}


def test_the_defaults_fit_into_the_minutes_and_stay_when_they_change(tmp_path, orders):
    path = tmp_path / "sweep.json"
    found = plan.specs("train", ["basic10", "resnet50"], [1], ["fp32"], [32],
                       device="cpu", optimizer=False, keep_memory=False)  # fmt: skip
    one = make(path, found, options=Options(None, seconds=100))
    one.run()
    statuses = {(name.split()[1], who): status for name, who, status in table(path)}
    assert statuses["basic10", COMPILED] == statuses["resnet50", COMPILED] == "skipped"
    cases = results.read(path)["cases"]
    reasons = [case["implementations"][COMPILED]["reason"] for case in cases.values()]
    assert reasons[0].startswith("compiling may take 300 s, and the case has 50 s; name it with")
    assert reasons[1].startswith("compiling the training step of resnet50 takes minutes on a CPU")
    chosen, left_out = choice.defaults(found[0], None)
    assert chosen == [EAGER, FUSED, EAGER_NCHW, COMPILED]
    assert left_out == {}
    # a later process with more time has the rows that the first one has chosen
    del one.store.cases[found[0].name]
    one.store.write()
    make(path, found, options=Options(None, seconds=9000)).run()
    assert {(name.split()[1], who): status for name, who, status in table(path)} == statuses


def test_numbers_models_and_names():
    assert plan.numbers("batch", ["1..8", "12", "1..12"]) == [1, 2, 4, 8, 12]
    assert plan.numbers("batch", ["512"]) == [512]
    for bad in ("0", "8..1", "x", "1-8", "0..4"):
        with pytest.raises(UsageError, match="batch must be numbers of at least 1"):
            plan.numbers("batch", [bad])
    depths = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    assert plan.model_names("train", ["18..152"]) == depths
    assert plan.model_names("infer", ["resnet56..resnet1202"]) == [
        "resnet56", "resnet110", "resnet1202",
    ]  # fmt: skip
    assert plan.model_names("block", ["*/layer4"]) == ["bottleneck/layer4", "basic/layer4"]
    assert len(plan.model_names("op", ["conv_bn_act/*"])) == 9
    assert plan.model_names("train", None) == ["resnet50"]
    for kind, bad in (("train", "resnet51"), ("train", "18..20"), ("op", "resnet50")):
        with pytest.raises(UsageError, match="model"):
            plan.model_names(kind, [bad])
    assert plan.default_size("train", "resnet1202") == 32
    assert plan.default_size("train", "resnet152") == 224
    assert choice.names(["fastres", "eager-nchw"]) == [EAGER, FUSED, EAGER_NCHW]
    with pytest.raises(UsageError, match="implementations must be of"):
        choice.names(["magic"])
    with pytest.raises(UsageError, match="cannot be imported"):
        choice.names(["no.such.module:PEER"])
    with pytest.raises(UsageError, match=r"must be a fastres.bench.peers.Peer, got a str"):
        choice.names(["os:sep"])


@pytest.mark.parametrize(
    ("kind", "model", "shape"),
    [
        ("train", "resnet20", (2, 3, 32, 32)),
        ("infer", "basic10", (2, 3, 32, 32)),
        ("block", "bottleneck/layer2", (2, 512, 4, 4)),
        ("op", "bn_add_act-pad/layer1", (2, 256, 8, 8)),
        ("op", "conv_bn_act/layer2-3x3-stride-2", (2, 128, 8, 8)),
    ],
)
def test_a_spec_makes_its_workload(kind, model, shape):
    spec = plan.Spec(kind, model, 2, "bf16", 32)
    workload = spec.workload()
    assert workload.shapes[0] == shape
    assert (workload.kind, workload.model, workload.image_size) == (kind, model, 32)
    assert model in spec.name


def test_default_names_differ_with_what_is_measured():
    one, other = default_name(IDENTITY), default_name({**IDENTITY, "commit": "def"})
    assert one.startswith("train-basic10-fp32-3-batches-")
    assert one != other
    assert LEAST_ROUNDS >= 4
