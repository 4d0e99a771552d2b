"""The training loop: it learns, evaluates, logs, and says why it stopped."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_runs import Tiny, rows, tiny_config, tiny_trainer

from fastres.training.data import open_source
from fastres.training.distributed import World
from fastres.training.errors import TrainingError, UsageError
from fastres.training.evaluate import evaluate


def test_the_loss_falls_and_is_logged(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path, epochs=8, milestones=(6,)))
    result = trainer.run()
    losses = [row["train_loss"] for row in result.rows]
    assert losses[-1] < 0.7 * losses[0]
    assert [int(row["iteration"]) for row in rows(tmp_path / "steps.csv")] == list(range(1, 49))
    logged = rows(tmp_path / "epochs.csv")
    assert [float(row["train_loss"]) for row in logged] == losses
    assert [float(row["lr"]) for row in logged] == pytest.approx([0.1] * 6 + [0.01] * 2)


def test_a_step_is_sgd_on_the_mean_loss(tmp_path):
    """Equal to the textbook loop: mean cross-entropy, momentum, weight decay."""
    trainer = tiny_trainer(tiny_config(tmp_path, iterations=3, milestones=None))
    batches = list(trainer._train_loader)[:3]
    trainer.run()
    model = Tiny().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for images, labels in batches:
        loss = F.cross_entropy(model(images.to(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for ours, theirs in zip(trainer.module.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_iterations_may_end_inside_an_epoch(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path, iterations=8, milestones=(7,)))
    result = trainer.run()
    assert [row["iteration"] for row in result.rows] == [6, 8]
    assert len(rows(tmp_path / "steps.csv")) == 8
    assert result.rows[-1]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize("options", [{"amp": "bf16"}, {"channels_last": False}])
def test_amp_and_layout_stay_near_plain_training(tmp_path, options):
    plain = tiny_trainer(tiny_config(tmp_path / "plain")).run()
    other = tiny_trainer(tiny_config(tmp_path / "other", **options)).run()
    assert other.rows[-1]["train_loss"] == pytest.approx(plain.rows[-1]["train_loss"], rel=0.05)


def test_plateau_and_tensorboard(tmp_path):
    trainer = tiny_trainer(
        tiny_config(tmp_path, schedule="plateau", milestones=None, tensorboard=True)
    )
    trainer.run()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_evaluation_counts_every_image_once(tmp_path):
    config = tiny_config(tmp_path)
    trainer = tiny_trainer(config)
    metrics, averaged = trainer._evaluate(trainer._held_out_loader)
    assert averaged is None
    split = open_source(config).held_out
    images, labels = split.__getitems__([(0, i) for i in range(len(split))])
    model = Tiny().eval()
    with torch.no_grad():
        logits = model(images)
    assert metrics.images == len(labels) == 22
    assert metrics.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert metrics.top1 == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean()
    assert metrics.top5 == pytest.approx(100 * float(top5))
    assert trainer.module.training


def test_evaluation_with_fewer_than_five_classes():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1))

    model = Two(3, 2)
    batch = (torch.randn(4, 3, 1, 1), torch.tensor([0, 1, 0, 1]))
    off = lambda: torch.autocast("cpu", enabled=False)  # noqa: E731
    metrics = evaluate(model, [batch], lambda x: x, off, World(), lambda: None)
    assert metrics.top5 == 100


def test_test_split_is_evaluated_once_at_the_end(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path))
    object.__setattr__(trainer.source, "test", trainer.source.held_out)
    result = trainer.run()
    assert result.test.top1 == pytest.approx(result.rows[-1]["top1"])


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(tmp_path):
    tiny_trainer(tiny_config(tmp_path, epochs=1, milestones=None)).run()
    before = (tmp_path / "last.pt").read_bytes()
    config = tiny_config(tmp_path, epochs=2, milestones=None, save_every=1, log_every=100)
    trainer = tiny_trainer(config)
    trainer.resume(tmp_path / "last.pt")
    with torch.no_grad():
        trainer.module[-1].bias.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"loss is nan at iteration 7 .* lower lr; the last"):
        trainer.run()
    assert (tmp_path / "last.pt").read_bytes() == before


def test_out_of_memory_says_what_to_lower(tmp_path):
    class Huge(Tiny):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(TrainingError, match=r"16 images .* try --batch-size 8 or --amp bf16"):
        tiny_trainer(tiny_config(tmp_path), Huge()).run()


def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(UsageError, match="amp 'fp16' needs a GPU"):
        tiny_trainer(tiny_config(tmp_path, amp="fp16"))
