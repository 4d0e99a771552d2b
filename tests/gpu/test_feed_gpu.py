"""Batches that are brought to a GPU on a stream of their own, and runs that average on one."""

from __future__ import annotations

import pytest
import torch
from training_runs import assert_same_run, tiny_config, tiny_trainer

from fastres.training.data import open_source
from fastres.training.data.feed import Feed
from fastres.training.data.sampler import TrainSampler
from fastres.training.errors import Stopped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

MODERN = {
    "device": "cuda", "schedule": "cosine", "warmup": "linear", "warmup_iterations": 4,
    "label_smoothing": 0.1, "ema_decay": 0.8, "norm_decay": False, "milestones": None,
    "deterministic": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_algorithm():
    """cuDNN's choice must not differ between the runs that are compared."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_hosts(tmp_path, workers):
    """While the device is busy, so that copies run ahead of what uses them."""
    split = open_source(tiny_config(tmp_path, num_images=400, image_size=32)).train
    device = torch.device("cuda")
    feed = Feed(split, TrainSampler(400, 16, 0), workers, device, torch.channels_last)
    expected = iter(TrainSampler(400, 16, 0))
    busy = torch.randn(2048, 2048, device=device)
    seen = []
    for images, labels in feed:
        for _ in range(5):
            busy = torch.mm(busy, busy).clamp(-1, 1)
        assert images.is_contiguous(memory_format=torch.channels_last)
        seen.append((images * 1.0, labels.clone()))
    feed.close()
    for (images, labels), keys in zip(seen, expected, strict=True):
        on_host, host_labels = split.__getitems__(keys)
        torch.testing.assert_close(images.cpu(), on_host, rtol=1e-6, atol=1e-6)
        assert torch.equal(labels.cpu(), host_labels)
    assert feed.waited >= 0


@pytest.mark.parametrize("graph", [False, True])
def test_a_resumed_modern_run_is_the_uninterrupted_one(tmp_path, graph):
    options = {**MODERN, "cuda_graph": graph}
    tiny_trainer(tiny_config(tmp_path / "one", **options)).run()
    first = tiny_trainer(tiny_config(tmp_path / "two", **options))
    step = first._step

    def stopping(images, labels):
        if first.progress.iteration == 7:
            first._stop.signum = 15
        return step(images, labels)

    first._step = stopping
    with pytest.raises(Stopped):
        first.run()
    second = tiny_trainer(tiny_config(tmp_path / "two", **options))
    second.resume(tmp_path / "two" / "last.pt")
    second.run()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_graph_averages_as_eager_steps_do(tmp_path):
    for name, graph in (("eager", False), ("graph", True)):
        tiny_trainer(tiny_config(tmp_path / name, **{**MODERN, "cuda_graph": graph})).run()
    assert_same_run(tmp_path / "eager", tmp_path / "graph")
