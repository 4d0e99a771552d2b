"""Training under a captured step: the order of things with a stand-in for graphs, and refusals."""

from __future__ import annotations

import pytest
import torch
from training_runs import COMMAND, Tiny, assert_same_run, rows, tiny_config, tiny_trainer

from fastres import cli
from fastres.kernels import tables, tuned
from fastres.training.distributed import World
from fastres.training.engine import Trainer
from fastres.training.errors import TrainingError, UsageError
from fastres.training.graph import WARM_UP, GraphedStep
from fastres.training.optimizer import load_state, make_sgd, set_lr, state_of
from fastres.training.reporter import Silent
from fastres.training.tables import check_same_tables

CPU = torch.device("cpu")


class Log:
    """`Graphs` that does the work at each replay, and keeps what was asked of it."""

    def __init__(self, refuse: str | None = None) -> None:
        self.events: list[str] = []
        self._refuse = refuse

    def warm_up(self, work):
        self.events.append("warm up")
        work()

    def capture(self, work):
        self.events.append("capture")
        if self._refuse:
            raise RuntimeError(self._refuse)

        def replay():
            self.events.append("replay")
            work()

        return replay


def graphed(events):
    """A step on batches of two that adds up images[:, 0] * labels."""
    seen = []

    def step(images, labels):
        seen.append((images, labels))
        return (images[:, 0] * labels).sum()

    return GraphedStep(step, lambda images: images, 2, events), seen


def test_each_call_is_one_step_on_its_own_batch():
    log = Log()
    step, seen = graphed(log)
    for number in range(6):
        images = torch.full((2, 1), float(number))
        assert float(step(images, torch.tensor([1, 2]))) == 3 * number
        assert float(images.sum()) == 2 * number, "the batch itself is not touched"
    assert log.events == ["warm up"] * WARM_UP + ["capture"] + ["replay"] * 3
    # always the same buffers, as a graph demands
    assert len({(i.data_ptr(), l.data_ptr()) for i, l in seen}) == 1


def test_a_batch_of_another_size_is_stepped_on_as_it_comes():
    log = Log()
    step, seen = graphed(log)
    full, short = torch.ones(2, 1), torch.full((1, 1), 5.0)
    assert float(step(short, torch.tensor([2]))) == 10
    assert log.events == []
    for _ in range(WARM_UP + 1):
        step(full, torch.tensor([1, 1]))
    before = list(log.events)
    assert float(step(short, torch.tensor([3]))) == 15
    assert log.events == before
    assert seen[-1][0] is short
    assert float(step(full, torch.tensor([1, 1]))) == 2


def test_what_cannot_be_captured_is_told():
    step, _ = graphed(Log(refuse="operation not permitted when stream is capturing\nmore"))
    batch = (torch.ones(2, 1), torch.tensor([1, 1]))
    for _ in range(WARM_UP):
        step(*batch)
    with pytest.raises(TrainingError) as info:
        step(*batch)
    assert str(info.value) == (
        "cuda_graph: the training step cannot be captured: operation not permitted when stream "
        "is capturing; go on without --cuda-graph"
    )


def test_a_run_is_the_eager_run(tmp_path):
    """Five full batches and a short one an epoch; the rate falls after the first."""
    tiny_trainer(tiny_config(tmp_path / "eager")).run()
    log = Log()
    config = tiny_config(tmp_path / "graph", cuda_graph=True)
    tiny_trainer(config, graphs=log).run()
    assert_same_run(tmp_path / "eager", tmp_path / "graph")
    assert log.events == ["warm up"] * 3 + ["capture"] + ["replay"] * 7


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    values = {"epochs": 2, "cuda_graph": True}
    tiny_trainer(tiny_config(tmp_path / "one", **values), graphs=Log()).run()
    first = tiny_trainer(tiny_config(tmp_path / "two", **values), graphs=Log())
    first._stop.signum = 15
    with pytest.raises(TrainingError, match="stopped by SIGTERM at epoch 1, step 1"):
        first.run()
    # by turns under a graph and without
    second = tiny_trainer(tiny_config(tmp_path / "two", cuda_graph=False))
    second.resume(tmp_path / "two" / "last.pt")
    second.run()
    assert rows(tmp_path / "one" / "steps.csv") == rows(tmp_path / "two" / "steps.csv")
    one, two = (torch.load(tmp_path / n / "last.pt", weights_only=True) for n in ("one", "two"))
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name])


def test_a_cpu_is_refused(tmp_path, capsys):
    with pytest.raises(UsageError, match="cuda_graph needs a GPU, device is cpu: leave out --cuda"):
        tiny_trainer(tiny_config(tmp_path, cuda_graph=True))
    assert cli.main([*COMMAND, "--cuda-graph", "--out", str(tmp_path / "run")]) == 2
    assert "fastres train: cuda_graph needs a GPU" in capsys.readouterr().err


def test_several_processes_are_refused(tmp_path):
    config = tiny_config(tmp_path, cuda_graph=True)
    world = World(rank=0, size=2)
    with pytest.raises(UsageError, match="captures the step of one process, got 2 processes"):
        Trainer(config, Tiny(), None, world, torch.device("cuda"), Silent())


def test_a_learning_rate_that_is_a_tensor_stays_where_it_is():
    """As on a GPU: the graph reads the rate at one address, checkpoints hold numbers."""
    parameter = torch.nn.Parameter(torch.ones(3))
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD([parameter], lr=rate, momentum=0.5, fused=True)
    parameter.grad = torch.ones(3)
    optimizer.step()
    set_lr(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate
    saved = state_of(optimizer)
    assert saved["param_groups"][0]["lr"] == 0.25
    assert type(saved["param_groups"][0]["lr"]) is float
    load_state(optimizer, saved)
    assert optimizer.param_groups[0]["lr"] is rate
    # and a run on a CPU takes it over, in its own way of stepping
    other = make_sgd([torch.nn.Parameter(torch.ones(3))], CPU, 0.1, 0.5, 0.0)
    load_state(other, saved)
    assert other.param_groups[0]["fused"] is None
    assert other.param_groups[0]["lr"] == 0.1
    (state,) = other.state.values()
    assert torch.equal(state["momentum_buffer"], torch.ones(3))


class Ranks:
    """A world whose other processes are planted."""

    def __init__(self, *others) -> None:
        self._others = others

    def gather(self, value):
        return [value, *self._others]


def test_processes_must_have_read_the_same_tables(monkeypatch):
    mine = tuned.fingerprint(CPU)
    check_same_tables(World(), CPU)
    check_same_tables(Ranks(mine, ("NVIDIA T4", "other", ["x.json"])), CPU)
    with pytest.raises(
        UsageError, match=r"ranks 0 and 1, both on no GPU, read different tuned tab"
    ):
        check_same_tables(Ranks((mine[0], "other", ["/other/x.json"])), CPU)
    with pytest.raises(UsageError, match="rank 1: broken table"):
        check_same_tables(Ranks("broken table"), CPU)

    def broken(device):
        raise tables.TableError("x.json: row 3: wrong")

    monkeypatch.setattr(tuned, "fingerprint", broken)
    with pytest.raises(UsageError, match=r"rank 0: x\.json: row 3: wrong"):
        check_same_tables(Ranks(mine), CPU)
