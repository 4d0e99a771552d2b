"""Checkpoint files: whole or absent, and refused with a reason when they are not ours."""

from __future__ import annotations

import errno
import os
import random
import zipfile

import numpy as np
import pytest
import torch
from training_runs import Tiny, tiny_config, tiny_trainer

from fastres.training import checkpoint, logs, rng
from fastres.training.errors import CheckpointError, TrainingError


@pytest.fixture
def run(tmp_path):
    """A finished run of one epoch, in tmp_path."""
    tiny_trainer(tiny_config(tmp_path, epochs=1, milestones=None)).run()
    return tmp_path


def test_it_loads_without_running_code_and_holds_everything(run):
    state = torch.load(run / "last.pt", weights_only=True)
    assert {
        "model", "optimizer", "schedule", "scaler", "progress", "rng", "config", "logs",
    } < state.keys()  # fmt: skip
    assert state["optimizer"]["state"][0]["momentum_buffer"].abs().sum() > 0
    assert state["progress"]["epoch"] == 1
    assert state["rng"][0].keys() == {"python", "numpy", "torch", "cuda"}
    assert state["config"]["seed"] == 0


def test_every_generator_is_put_back():
    def draw():
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),  # noqa: NPY002
            np.random.randn(),  # noqa: NPY002
            float(torch.rand(())),
        )

    random.gauss(0, 1)  # leaves a cached half behind, as NumPy's does
    np.random.randn()  # noqa: NPY002
    state = rng.capture()
    first = draw()
    rng.restore(state)
    assert draw() == first


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.9, -1])
def test_a_truncated_file_is_refused_and_left_alone(run, keep):
    path = run / "last.pt"
    whole = path.read_bytes()
    cut = whole[: int(keep * len(whole)) if isinstance(keep, float) else keep]
    path.write_bytes(cut)
    best = (run / "best.pt").read_bytes()
    trainer = tiny_trainer(tiny_config(run))
    with pytest.raises(CheckpointError, match=r"last\.pt is truncated or not a checkpoint"):
        trainer.resume(path)
    assert path.read_bytes() == cut
    assert (run / "best.pt").read_bytes() == best


@pytest.mark.parametrize("where", [0.3, 0.5, 0.8])
def test_a_flipped_bit_is_found(run, where):
    """torch.load would read it without a word. Between the parts of a file there is room that is
    not read at all: the bit is one of a tensor."""
    path = run / "last.pt"
    with zipfile.ZipFile(path) as archive:
        tensors = [part for part in archive.infolist() if "/data/" in part.filename]
        content = archive.read(tensors[int(where * len(tensors))])
    whole = bytearray(path.read_bytes())
    whole[whole.index(content, tensors[int(where * len(tensors))].header_offset)] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"last\.pt is (damaged: the check sum of|truncated)"):
        checkpoint.load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        checkpoint.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of fastres"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT, "version": 99}, path)
    with pytest.raises(CheckpointError, match="version must be 1, got 99"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT, "version": 1, "model": {}}, path)
    with pytest.raises(CheckpointError, match="lacks optimizer, schedule"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.load(tmp_path / "none.pt")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    path = tmp_path / "harmful.pt"
    torch.save({"format": checkpoint.FORMAT, "version": 1, "model": Harmful()}, path)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not (tmp_path / "touched").exists()


def test_another_network_is_refused_by_its_first_keys(run):
    trainer = tiny_trainer(tiny_config(run), Tiny(width=12))
    before = {key: value.clone() for key, value in trainer.module.state_dict().items()}
    with pytest.raises(
        CheckpointError,
        match=r"of another network: 11 keys differ, first: 0\.weight is \(8, 3, 3, 3\) in it and "
        r"\(12, 3, 3, 3\) here; 1\.weight",
    ):
        trainer.resume(run / "last.pt")
    for key, value in trainer.module.state_dict().items():
        assert torch.equal(value, before[key])
    longer = Tiny().append(torch.nn.Linear(10, 10))
    with pytest.raises(CheckpointError, match=r"2 keys differ, first: 9\.weight is missing in it"):
        tiny_trainer(tiny_config(run), longer).resume(run / "last.pt")
    with pytest.raises(CheckpointError, match=r"first: 8\.weight is only in it"):
        tiny_trainer(tiny_config(run), torch.nn.Sequential(*list(Tiny())[:-1])).resume(
            run / "last.pt"
        )


def test_another_run_is_refused(run):
    trainer = tiny_trainer(tiny_config(run, seed=1, batch_size=8))
    with pytest.raises(CheckpointError, match="batch_size was 16, now 8; seed was 0, now 1"):
        trainer.resume(run / "last.pt")


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_full_disk_is_reported_and_the_last_good_file_kept(run, monkeypatch, moment):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = (run / "last.pt").read_bytes()
    trainer = tiny_trainer(tiny_config(run, epochs=2, milestones=None))
    trainer.resume(run / "last.pt")
    if moment == "write":

        class Full:
            def __init__(self, path, mode):
                self._file = open(path, mode)  # noqa: SIM115

            def __enter__(self):
                return self

            def __exit__(self, *exception):
                self._file.close()

            def write(self, data):
                self._file.write(data[: len(data) // 2])
                full()

        monkeypatch.setattr(checkpoint, "open", Full, raising=False)
    elif moment == "fsync":
        real = os.fsync
        # the logs are synced first and still fit
        monkeypatch.setattr(
            checkpoint.os, "fsync",
            lambda handle: full() if ".tmp" in os.readlink(f"/proc/self/fd/{handle}")
            else real(handle),
        )  # fmt: skip
    else:
        monkeypatch.setattr(checkpoint.os, "replace", full)
    message = r"cannot write the checkpoint .*: No space left on device; the last good one is kept"
    with pytest.raises(TrainingError, match=message):
        trainer.run()
    monkeypatch.undo()
    assert (run / "last.pt").read_bytes() == before
    assert not list(run.glob(".*.tmp"))
    assert checkpoint.load(run / "last.pt")["progress"]["epoch"] == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_on_a_full_disk_is_reported(tmp_path):
    (tmp_path / "steps.csv").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"cannot write .*steps\.csv: No space left on device"):
        tiny_trainer(tiny_config(tmp_path)).run()


def test_tensorboard_on_a_full_disk_is_reported(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Board:
        add_scalar = close = full

    monkeypatch.setattr(logs, "_open_board", lambda folder, purge_step: Board())
    with pytest.raises(TrainingError, match="cannot write TensorBoard's events: No space left"):
        tiny_trainer(tiny_config(tmp_path, tensorboard=True)).run()
