"""Two and four gloo processes against one: the same training run, and what "the same" means.

With SyncBN a run is that of one process with the whole batch, but for the order of sums. Without,
every process normalises its own share; one process that goes through the shares in turn does the
same: bitwise with two processes, whose two gradients can only be added in one way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import training_ranks
from training_runs import rows

from fastres.training import checkpoint
from fastres.training.data import open_source
from fastres.training.data.sampler import TrainSampler
from fastres.training.distributed import World
from fastres.training.schedule import make_schedule

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo"),
    pytest.mark.slow,
]

SIZES = sorted(training_ranks.SIZES)
# float32's rounding of the loss and of its gradient, seven to fourteen steps on
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The runs on two and on four processes, and `one`: the same run on one."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, training_ranks.__file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    training_ranks.trainer_of(training_ranks.config(folder / "one"), World()).run()
    return folder


def losses(run: Path) -> list[float]:
    return [float(row["loss"]) for row in rows(run / "steps.csv")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the network and, with longer names, of the averaged one."""
    state = checkpoint.load(run / "last.pt")
    averaged = {f"average {key}": value for key, value in state["average"]["model"].items()}
    return {**state["model"], **averaged}


def assert_close(one: Path, other: Path) -> None:
    """Losses, held-out results, weights and running statistics."""
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)
    for a, b in zip(rows(one / "epochs.csv"), rows(other / "epochs.csv"), strict=True):
        assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=1e-4)
        assert b["iteration"] == a["iteration"]
    theirs = weights(other)
    for key, value in weights(one).items():
        torch.testing.assert_close(theirs[key], value, **CLOSE, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", ["one", "2/sync", "4/local"])
def test_the_rate_is_in_proportion_to_the_batch_and_warms_up(folder, name):
    """Whatever the number of processes: the batch is that of all of them together."""
    rates = [float(row["lr"]) for row in rows(folder / name / "steps.csv")]
    assert rates == pytest.approx([0.005 + 0.045 * i / 7 for i in range(7)] + [0.05] * 7)


@pytest.mark.parametrize("size", SIZES)
def test_with_sync_bn_many_processes_are_one(folder, size):
    assert len(losses(folder / str(size) / "sync")) == 14
    assert_close(folder / "one", folder / str(size) / "sync")


def test_a_run_may_go_on_with_another_number_of_processes(folder):
    """An epoch on four processes, the second on two, from the checkpoint of the four."""
    first = rows(folder / "4" / "resized" / "steps.csv")
    second = rows(folder / "2" / "resized" / "steps.csv")
    assert [int(row["iteration"]) for row in first + second] == list(range(1, 15))
    together = [float(row["loss"]) for row in first + second]
    assert together == pytest.approx(losses(folder / "one"), rel=1e-5)
    theirs = weights(folder / "2" / "resized")
    for key, value in weights(folder / "one").items():
        torch.testing.assert_close(theirs[key], value, **CLOSE, msg=lambda m, k=key: f"{k}: {m}")


def in_turns(options, size: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The run without SyncBN in one process: share by share, gradients added up.

    As under DDP the buffers are those of rank 0.
    """
    source = open_source(options)
    samplers = [TrainSampler(105, options.batch_size, 0, rank, size) for rank in range(size)]
    model = training_ranks.Doubled().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0, momentum=0.9, weight_decay=options.weight_decay
    )
    schedule = make_schedule(options, 7)
    logged = []
    for epoch in range(2):
        for sampler in samplers:
            sampler.seek(epoch, 0)
        for step, shares in enumerate(zip(*samplers, strict=True)):
            count = samplers[0].images_in(step)
            assert sum(map(len, shares)) == count
            before = {name: b.clone() for name, b in model.named_buffers()}
            total, loss = None, 0.0
            for rank, share in enumerate(shares):
                images, labels = source.train.__getitems__(share)
                buffers = {name: b.clone() for name, b in before.items()}
                logits = torch.func.functional_call(
                    model, buffers, images.to(memory_format=torch.channels_last)
                )
                loss_sum = F.cross_entropy(logits.float(), labels, reduction="sum")
                parts = torch.autograd.grad(loss_sum * (size / count), list(model.parameters()))
                parts = [part / size for part in parts]
                total = parts if total is None else [a + b for a, b in zip(total, parts)]  # noqa: B905
                loss = loss + loss_sum.detach() / count
                if rank == 0:
                    kept = buffers
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
            for parameter, gradient in zip(model.parameters(), total, strict=True):
                parameter.grad = gradient
            optimizer.param_groups[0]["lr"] = schedule.lr(len(logged))
            optimizer.step()
            logged.append(float(loss))
    return logged, model.state_dict()


@pytest.mark.parametrize("size", SIZES)
def test_without_sync_bn_many_processes_are_one_that_takes_the_shares_in_turns(folder, size):
    run = folder / str(size) / "local"
    logged, want = in_turns(training_ranks.config(run), size)
    found = checkpoint.load(run / "last.pt")["model"]
    assert found.keys() == want.keys()
    if size == 2:
        assert losses(run) == logged
        for key, value in want.items():
            assert torch.equal(found[key], value), key
    else:
        assert losses(run) == pytest.approx(logged, rel=1e-5)
        for key, value in want.items():
            torch.testing.assert_close(found[key], value, **CLOSE)


@pytest.mark.parametrize("size", SIZES)
def test_gradients_lie_in_buckets_and_keep_the_layout_of_their_parameters(folder, size):
    found = torch.load(folder / str(size) / "layouts.pt")
    assert len(found) == 9
    for name, (parameter, gradient, momentum, values) in found.items():
        assert parameter == gradient == momentum, name
        assert values > 70_000, name  # a bucket, not a tensor of its own
        assert parameter[1] == 1, name  # channels_last


@pytest.mark.parametrize("size", SIZES)
def test_only_rank_0_needs_the_folder(folder, size):
    assert not (folder / str(size) / "nowhere").exists()


@pytest.mark.parametrize("size", SIZES)
def test_fsdp2_with_sync_bn_is_one_process(folder, size):
    """The loss of a batch is the mean of the shards' losses."""
    shards = torch.tensor(torch.load(folder / str(size) / "fsdp.pt"), dtype=torch.float64)
    whole = training_ranks.sharded_losses(slice(None), shard=False, sync=False)
    assert shards.shape == (size, 3)
    assert shards.mean(0).tolist() == pytest.approx(whole, rel=1e-10)
