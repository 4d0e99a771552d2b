"""A resumed run is the uninterrupted one: losses, weights, momenta and generators bitwise."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from training_runs import COMMAND, assert_same_run, rows, tiny_config, tiny_trainer

from fastres import cli
from fastres.training import train
from fastres.training.errors import Stopped
from fastres.training.reporter import Silent


class SignalAt(Silent):
    """Sends this process a signal when it has done a number of steps of one life."""

    def __init__(self, steps: int, signum: int = signal.SIGTERM) -> None:
        self.left, self.signum = steps, signum
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, done: int, loss: float | None) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.signum)


@pytest.fixture
def uninterrupted(tmp_path):
    out = tmp_path / "uninterrupted"
    tiny_trainer(tiny_config(out, epochs=3, milestones=(1, 2))).run()
    return out


@pytest.mark.parametrize("steps", [1, 4, 6, 7, 12, 17])
def test_stopped_anywhere_and_resumed(tmp_path, uninterrupted, steps):
    """1 and 7: first steps of an epoch; 6 and 12: the last, before evaluation."""
    config = tiny_config(tmp_path / "run", epochs=3, milestones=(1, 2))
    with pytest.raises(Stopped, match="stopped by SIGTERM at epoch"):
        tiny_trainer(config, reporter=SignalAt(steps)).run()
    assert len(rows(tmp_path / "run" / "steps.csv")) == steps
    trainer = tiny_trainer(config)
    trainer.resume(tmp_path / "run" / "last.pt")
    torch.rand(3)  # what a resumed process draws before it starts must not matter to the order
    trainer.run()
    a, b = (torch.load(p / "last.pt", weights_only=True) for p in (uninterrupted, tmp_path / "run"))
    for key, value in a["model"].items():
        assert torch.equal(value, b["model"][key])
    for name in ("steps.csv", "epochs.csv"):
        assert rows(uninterrupted / name) == rows(tmp_path / "run" / name)


@pytest.mark.parametrize("options", [{"schedule": "plateau", "patience": 1}, {"amp": "bf16"}])
def test_everything_is_equal_after_several_stops(tmp_path, options):
    values = {"epochs": 3, "milestones": None, **options}
    tiny_trainer(tiny_config(tmp_path / "one", **values)).run()
    config = tiny_config(tmp_path / "two", **values)
    for _ in range(3):
        trainer = tiny_trainer(config, reporter=SignalAt(5))
        if (tmp_path / "two" / "last.pt").exists():
            trainer.resume(tmp_path / "two" / "last.pt")
        with pytest.raises(Stopped):
            trainer.run()
    trainer = tiny_trainer(config)
    trainer.resume(tmp_path / "two" / "last.pt")
    trainer.run()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_rows_after_the_checkpoint_are_cut(tmp_path, uninterrupted):
    """A run killed after a save has logged steps that the resumed one takes again."""
    config = tiny_config(tmp_path / "run", epochs=3, milestones=(1, 2))
    with pytest.raises(Stopped):
        tiny_trainer(config, reporter=SignalAt(8)).run()
    for name in ("steps.csv", "epochs.csv"):
        with open(tmp_path / "run" / name, "a") as file:
            file.write("9,2,0.1,7.7\n10,2,0.1")
    trainer = tiny_trainer(config)
    trainer.resume(tmp_path / "run" / "last.pt")
    trainer.run()
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_log_shorter_than_the_checkpoint_says_is_not_padded(tmp_path):
    config = tiny_config(tmp_path)
    with pytest.raises(Stopped):
        tiny_trainer(config, reporter=SignalAt(8)).run()
    (tmp_path / "steps.csv").write_text("iteration,epoch,lr,loss\n")
    trainer = tiny_trainer(config)
    trainer.resume(tmp_path / "last.pt")
    trainer.run()
    assert b"\0" not in (tmp_path / "steps.csv").read_bytes()
    assert [row["iteration"] for row in rows(tmp_path / "steps.csv")] == ["9", "10", "11", "12"]


def test_a_longer_run_and_another_rate_are_allowed_and_said(tmp_path):
    tiny_trainer(tiny_config(tmp_path, epochs=1, milestones=None)).run()
    reporter = SignalAt(100)
    trainer = tiny_trainer(tiny_config(tmp_path, epochs=2, lr=0.01), reporter=reporter)
    trainer.resume(tmp_path / "last.pt")
    assert [row["epoch"] for row in trainer.run().rows] == [2]
    assert "resume: lr was 0.1, now 0.01" in reporter.notes


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_exit_with_their_code(tmp_path, capsys, monkeypatch, signum):
    before = signal.getsignal(signum)
    assert cli.main([*COMMAND, "--out", str(tmp_path / "one")]) == 0
    monkeypatch.setattr("fastres.training.reporter.make_reporter", lambda _: SignalAt(8, signum))
    code = cli.main([*COMMAND, "--out", str(tmp_path / "two")])
    assert code == 128 + signum
    error = capsys.readouterr().err
    assert f"stopped by {signum.name} at epoch 2, step 2/6; state saved in" in error
    assert len(error.splitlines()) == 1
    assert signal.getsignal(signum) is before
    monkeypatch.undo()
    assert cli.main([*COMMAND, "--out", str(tmp_path / "two"), "--resume", "auto"]) == 0
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_resume_auto_without_a_checkpoint_starts_anew(tmp_path):
    assert train._find_checkpoint("auto", tmp_path / "last.pt") is None
