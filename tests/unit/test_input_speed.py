"""The input pipeline beside the step: what counts as waiting, and what CIFAR's batches cost."""

from __future__ import annotations

import contextlib
import re
import time

import numpy as np
import pytest
import torch
from training_runs import tiny_config, tiny_trainer

from fastres import cli, models
from fastres.training.config import TrainConfig
from fastres.training.data import cifar, open_source
from fastres.training.data.feed import Feed
from fastres.training.data.sampler import EvaluationSampler, TrainSampler
from fastres.training.data.source import Raw
from fastres.training.errors import UsageError
from fastres.training.input_speed import InputSpeed, measure_input

CPU = torch.device("cpu")


@pytest.fixture
def cifar_files(tmp_path, monkeypatch):
    """CIFAR-10's binary files, with 200 records each."""
    monkeypatch.setattr(cifar, "RECORDS", 200)
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        table = generator.integers(0, 256, (200, 3073), dtype=np.uint8)
        table[:, 0] %= 10
        (tmp_path / f"{name}.bin").write_bytes(table.tobytes())
    return tmp_path


def test_cifars_input_is_under_a_tenth_of_a_resnet20_step(cifar_files, monkeypatch):
    """Processor time of a batch of 128, against the fused network's step on the same processor."""
    config = TrainConfig.build(
        "cifar10", data_dir=str(cifar_files), validation=100, device="cpu", out=str(cifar_files)
    )
    trainer = tiny_trainer(config, models.create("resnet20", fused=True))
    found = measure_input(trainer, 3)
    assert found.images == 128
    assert found.input_cpu < 0.1 * found.step_cpu
    assert found.waiting < 0.5  # by the clock of a machine that may be busy


def test_the_command_says_how_they_compare(capsys):
    code = cli.main(
        ["data", "speed", "--data", "synthetic", "--image-size", "8", "--num-images", "64",
         "--batch-size", "16", "--no-fused", "--device", "cpu", "--steps", "2"]
    )  # fmt: skip
    assert code == 0
    out = capsys.readouterr().out
    for name in ("input alone", "step alone", "both"):
        assert re.search(rf"{name} +[\d.]+ ms a batch +\d+ images/s", out)
    assert re.search(r"the input pipeline (keeps up|does not keep up): [\d.]+% of a step", out)


def test_the_verdict_is_by_how_much():
    slow = InputSpeed(128, 5, 0.3, 0.3, 0.1, 0.1, 0.4, 0.75)
    assert slow.verdict() == (
        "the input pipeline does not keep up: 75.0% of a step is spent waiting for input, a step "
        "takes 4.00 times as long as without; see --workers"
    )
    assert "keeps up: 2.0%" in InputSpeed(128, 5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.02).verdict()


def test_measuring_needs_steps(tmp_path, capsys):
    assert cli.main(["data", "speed", "--data", "synthetic", "--steps", "0"]) == 2
    assert "steps must be at least 1, got 0" in capsys.readouterr().err
    trainer = tiny_trainer(tiny_config(tmp_path, num_images=16))
    with pytest.raises(UsageError, match="has only 1"):
        measure_input(trainer, 2)


class _Slow:
    """A split whose batches take a moment, and whose third image cannot be read."""

    def __len__(self):
        return 6

    def __getitems__(self, keys):
        raise AssertionError("a split that leaves images to the device is asked by fetch")

    def fetch(self, keys):
        time.sleep(0.02)
        kept = [index for _, index in keys if index != 2]
        skipped = tuple(f"image {index}" for _, index in keys if index == 2)
        images = torch.tensor(kept, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
        return Raw(images, torch.tensor(kept, dtype=torch.int64), {}, skipped)

    def finisher(self, device, layout=torch.preserve_format):
        return lambda raw: raw.images.float()


def test_waiting_and_skipping_are_counted():
    feed = Feed(_Slow(), TrainSampler(6, 2, 0), 0, CPU, torch.preserve_format)
    labels = [int(label) for _, batch in feed for label in batch]
    assert sorted(labels) == [0, 1, 3, 4, 5]
    assert feed.waited >= 0.06
    assert feed.skipped == ["image 2"]
    feed.start_count()
    assert (feed.waited, feed.skipped) == (0.0, [])
    time.sleep(0.05)
    assert feed.waited == 0.0  # what others do is not waiting


def test_a_batch_of_broken_images_alone_is_left_out():
    feed = Feed(_Slow(), EvaluationSampler(6, 1), 0, CPU, torch.preserve_format)
    assert [int(labels) for _, labels in feed] == [0, 1, 3, 4, 5]
    assert feed.skipped == ["image 2"]


def test_the_share_of_waiting_is_logged(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path))
    split = trainer.source.train
    fetch = split.fetch

    def slow(keys):
        time.sleep(0.02)
        return fetch(keys)

    split.fetch = slow
    row = trainer.run().rows[-1]
    assert row["input_share"] * row["seconds"] >= 0.1
    assert row["input_share"] <= 1


def test_splits_of_float_batches_are_taken_as_they_come(tmp_path):
    class Floats:
        def __len__(self):
            return 4

        def __getitems__(self, keys):
            count = len(keys)
            return torch.ones(count, 3, 2, 2), torch.tensor([index for _, index in keys])

    feed = Feed(Floats(), EvaluationSampler(4, 2), 0, CPU, torch.channels_last)
    batches = list(feed)
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [2, 3]]
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)


def test_every_dataset_stays_bytes_until_the_device(tmp_path):
    for config in (tiny_config(tmp_path), TrainConfig.build("procedural", num_images=20)):
        source = open_source(config)
        for split in (source.train, source.held_out):
            assert split.fetch([(0, 1)]).images.dtype == torch.uint8
        assert source.normalize is not None


class _Stream:
    """Stands in for a CUDA stream and its events; keeps what it was asked, in order."""

    def __init__(self, log, busy):
        self.log, self.busy = log, busy

    def record_event(self):
        self.log.append("arrived")
        return "event"

    def wait_event(self, event):
        self.log.append("wait")

    def record(self, stream):
        pass

    def query(self):
        return not self.busy


@pytest.mark.parametrize("busy", [False, True])
def test_a_gpus_batches_run_one_ahead_and_a_busy_gpu_does_not_wait(monkeypatch, busy):
    """The order of things, with stand-ins for CUDA's streams and events."""
    log = []
    stream = _Stream(log, busy)
    feed = Feed(_Slow(), EvaluationSampler(6, 2), 0, CPU, torch.preserve_format)
    feed._stream = stream
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: log.append("keep"))
    labels = []
    for _, batch in feed:
        labels += batch.tolist()
        log.append("use")
    assert labels == [0, 1, 3, 4, 5]
    taken = ["wait", "keep", "keep", "use"]
    assert log == ["arrived", "arrived", *taken, "arrived", *taken, *taken]
    assert (feed.waited == 0.0) is busy
    assert feed.skipped == ["image 2"]
