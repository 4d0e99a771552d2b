"""Which images make which step, and how they are augmented: functions of the seed alone."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from training_runs import tiny_config

from fastres.training.data import loader as loader_module
from fastres.training.data import open_source
from fastres.training.data.augment import CropAndFlip, draws
from fastres.training.data.loader import Loader
from fastres.training.data.sampler import EvaluationSampler, TrainSampler
from fastres.training.errors import DataError, UsageError


def _steps(sampler, epoch, start=0):
    sampler.seek(epoch, start)
    return list(sampler)


def test_an_epoch_is_a_shuffle_fixed_by_seed_and_epoch():
    steps = _steps(TrainSampler(53, 16, seed=1), epoch=4)
    assert [len(step) for step in steps] == [16, 16, 16, 5]
    assert sorted(index for step in steps for _, index in step) == list(range(53))
    assert {epoch for step in steps for epoch, _ in step} == {4}
    assert steps == _steps(TrainSampler(53, 16, seed=1), 4)
    assert steps != _steps(TrainSampler(53, 16, seed=2), 4)
    other = [[i for _, i in step] for step in _steps(TrainSampler(53, 16, seed=1), 5)]
    assert [[i for _, i in step] for step in steps] != other


def test_seeking_into_an_epoch_yields_its_rest():
    whole = _steps(TrainSampler(53, 16, seed=1), 2)
    sampler = TrainSampler(53, 16, seed=1)
    assert _steps(sampler, 2, start=3) == whole[3:]
    assert len(sampler) == 1


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_every_step_and_none_is_empty(ranks):
    whole = _steps(TrainSampler(57, 16, seed=1), 0)
    shares = [_steps(TrainSampler(57, 16, 1, rank, ranks), 0) for rank in range(ranks)]
    for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert [key for part in parts for key in part] == step
        assert all(len(part) >= 2 for part in parts)


def test_a_last_batch_too_small_for_batch_norm_is_left_out():
    assert TrainSampler(33, 16, 0).steps_per_epoch == 2
    assert TrainSampler(34, 16, 0).steps_per_epoch == 3
    assert TrainSampler(35, 16, 0, 0, 2).steps_per_epoch == 2


def test_sampler_names_what_is_too_small():
    with pytest.raises(UsageError, match=r"batch_size must be at least 2 per process .* got 3"):
        TrainSampler(50, 3, 0, 0, 2)
    with pytest.raises(UsageError, match="at least 2 images for 1 processes, got 1"):
        TrainSampler(1, 16, 0)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_every_image_once(ranks):
    keys = [
        key for rank in range(ranks) for batch in EvaluationSampler(23, 8, rank, ranks)
        for key in batch
    ]  # fmt: skip
    assert sorted(keys) == [(0, index) for index in range(23)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_change_nothing(tmp_path):
    config = tiny_config(tmp_path)
    split = open_source(config).train
    loaders = [
        Loader(split, TrainSampler(len(split), 16, 0), workers, pin_memory=False)
        for workers in (0, 2)
    ]
    for epoch, start in ((0, 0), (1, 2)):
        for loader in loaders:
            loader.sampler.seek(epoch, start)
        pairs = list(zip(*loaders, strict=True))
        assert len(pairs) == 6 - start
        for raw, other in pairs:
            assert raw.images.dtype == torch.uint8
            assert torch.equal(raw.images, other.images)
            assert torch.equal(raw.labels, other.labels)
            assert all(torch.equal(raw.draws[name], other.draws[name]) for name in raw.draws)
    loaders[1].close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_out_of_a_worker_in_one_line(workers):
    class Broken:
        def __len__(self):
            return 4

        def __getitems__(self, keys):
            raise DataError("cannot read the image x.png")

    loader = Loader(Broken(), EvaluationSampler(4, 2), workers, pin_memory=False)
    with pytest.raises(DataError, match=r"\Acannot read the image x.png\Z"):
        list(loader)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_closing_ends_the_workers_in_the_middle_of_an_epoch(tmp_path):
    """They ignore SIGTERM, which is all that the exit of the interpreter would send them."""
    split = open_source(tiny_config(tmp_path)).train
    before = set(multiprocessing.active_children())
    loader = Loader(split, TrainSampler(len(split), 16, 0), 2, pin_memory=False)
    batches = iter(loader)
    next(batches)
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    loader.close()
    assert not any(worker.is_alive() for worker in started)
    loader.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="the worker is told by a closure"
)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_end_a_worker_that_is_starting(monkeypatch, tmp_path, signum):
    prepare = loader_module._prepare_worker

    def signalled(worker_id):
        os.kill(os.getpid(), signum)
        prepare(worker_id)
        os.kill(os.getpid(), signum)

    monkeypatch.setattr(loader_module, "_prepare_worker", signalled)
    split = open_source(tiny_config(tmp_path)).train
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    loader = Loader(split, TrainSampler(len(split), 16, 0), 1, pin_memory=False)
    assert len(list(loader)) == len(loader)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    loader.close()


def test_an_iterator_leaves_torchs_generator_alone(tmp_path):
    split = open_source(tiny_config(tmp_path)).train
    before = torch.get_rng_state()
    next(iter(Loader(split, TrainSampler(len(split), 16, 0), 0, pin_memory=False)))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_depends_on_epoch_and_index_alone(tmp_path):
    split = open_source(tiny_config(tmp_path)).train
    keys = [(3, index) for index in range(40)]
    together, _ = split.__getitems__(keys)
    alone = torch.cat([split.__getitems__([key])[0] for key in reversed(keys)]).flip(0)
    assert torch.equal(together, alone)
    later, _ = split.__getitems__([(4, index) for index in range(40)])
    assert not torch.equal(together, later)


def test_crop_and_flip_by_hand():
    images = torch.arange(2 * 9.0).reshape(2, 1, 3, 3) + 1
    top_flag = np.uint64(1 << 63)
    words = np.array([[0, 2, 0], [1, 1, top_flag]], dtype=np.uint64)
    out = CropAndFlip(padding=1, flip=True)(images, words)
    # first: window from row 0, column 2 of the padded image; second: centre, mirrored
    expected = torch.tensor([[[0.0, 0, 0], [2, 3, 0], [5, 6, 0]]])
    assert torch.equal(out[0], expected)
    assert torch.equal(out[1], images[1].flip(2))


def test_draws_are_uniform_enough():
    epochs, indices = np.zeros(9000, dtype=np.int64), np.arange(9000)
    words = draws(7, epochs, indices, 3)
    counts = np.bincount((words[:, 0] % np.uint64(9)).astype(int), minlength=9)
    assert counts.min() > 850
    assert counts.max() < 1150
    assert 0.47 < (words[:, 2] >> np.uint64(63)).mean() < 0.53
    assert len(np.unique(words)) == words.size
