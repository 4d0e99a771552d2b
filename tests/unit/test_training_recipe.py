"""What the recipes add to the loop: smoothing, warm-ups, cosine, averaging, undecayed biases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_runs import COMMAND, Tiny, assert_same_run, rows, tiny_config, tiny_trainer

from fastres import cli
from fastres.training import checkpoint
from fastres.training.averaging import Average
from fastres.training.config import TrainConfig
from fastres.training.data import open_source
from fastres.training.errors import CheckpointError, Stopped
from fastres.training.optimizer import decay_groups, make_sgd
from fastres.training.schedule import WARMUP_WINDOW, make_schedule

MODERN = {
    "schedule": "cosine", "warmup": "linear", "warmup_iterations": 4, "label_smoothing": 0.1,
    "ema_decay": 0.8, "ema_every": 2, "norm_decay": False, "lr_batch": 8, "milestones": None,
    "lr": 0.05,
}  # fmt: skip


def test_cosine_after_a_linear_warm_up_is_torchs():
    config = TrainConfig.build(
        "synthetic", epochs=5, schedule="cosine", warmup="linear", warmup_epochs=1, lr=0.4,
        warmup_lr=0.1,
    )  # fmt: skip
    schedule = make_schedule(config, steps_per_epoch=10)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=10)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[10])
    for iteration in range(50):
        assert schedule.lr(iteration) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        both.step()
    assert schedule.lr(50) == pytest.approx(0)
    assert schedule.lr(51) == pytest.approx(0)


def test_a_linear_warm_up_leads_to_any_schedule():
    config = TrainConfig.build(
        "synthetic", iterations=20, warmup="linear", warmup_iterations=4, milestones=(10,),
    )  # fmt: skip
    schedule = make_schedule(config, 5)
    rates = [schedule.lr(i) for i in (0, 2, 4, 9, 10)]
    assert rates == pytest.approx([0.01, 0.055, 0.1, 0.1, 0.01])
    assert [schedule.warmup.lasts(i) for i in (0, 3, 4)] == [True, True, False]


def test_a_step_is_torchs_with_every_part_of_the_modern_recipe(tmp_path):
    """Label smoothing, undecayed biases and norms, scaled and warmed-up rates, averaged weights."""
    trainer = tiny_trainer(tiny_config(tmp_path, iterations=5, **MODERN))
    batches = [(images.clone(), labels) for images, labels in list(trainer._train_loader)[:5]]
    trainer.run()
    model = Tiny().to(memory_format=torch.channels_last)
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights}, {"params": others, "weight_decay": 0}],
        lr=0.1, momentum=0.9, weight_decay=1e-4,
    )  # fmt: skip
    average: dict[str, torch.Tensor] = {}
    for iteration, (images, labels) in enumerate(batches):
        lr = 0.01 + 0.09 * iteration / 4 if iteration < 4 else 0.1  # lr_batch 8, batch 16
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration + 1 in (2, 4):
            now = {name: value.clone() for name, value in model.state_dict().items()}
            if iteration + 1 == 2:
                average = now  # in the warm-up it is a copy
            else:
                average = {
                    name: 0.8 * average[name] + 0.2 * value if value.is_floating_point() else value
                    for name, value in now.items()
                }
    for ours, theirs in zip(trainer.module.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    state = checkpoint.load(tmp_path / "last.pt")["average"]
    assert state["updates"] == 2
    for name, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(state["model"][name], value)


def test_the_average_is_evaluated_and_chooses_the_best(tmp_path):
    result = tiny_trainer(tiny_config(tmp_path, ema_decay=0.5)).run()
    logged = rows(tmp_path / "epochs.csv")
    state = checkpoint.load(tmp_path / "best.pt")
    best = max(row["ema_top1"] for row in result.rows)
    assert state["progress"]["best_top1"] == best
    assert [float(row["ema_loss"]) for row in logged] == [row["ema_loss"] for row in result.rows]
    module = Tiny().eval()
    module.load_state_dict(checkpoint.load(tmp_path / "last.pt")["average"]["model"])
    split = open_source(tiny_config(tmp_path)).held_out
    images, labels = split.__getitems__([(0, i) for i in range(len(split))])
    with torch.no_grad():
        logits = module(images)
    loss = float(F.cross_entropy(logits, labels))
    assert result.rows[-1]["ema_loss"] == pytest.approx(loss, rel=1e-5)
    assert result.rows[-1]["ema_loss"] != result.rows[-1]["loss"]


def test_without_an_average_its_columns_are_empty(tmp_path):
    tiny_trainer(tiny_config(tmp_path)).run()
    assert {row["ema_top1"] for row in rows(tmp_path / "epochs.csv")} == {""}
    assert "average" not in checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("stop", [1, 3, 6, 9])
def test_a_resumed_modern_run_is_the_uninterrupted_one(tmp_path, stop):
    tiny_trainer(tiny_config(tmp_path / "one", **MODERN)).run()
    first = tiny_trainer(tiny_config(tmp_path / "two", **MODERN))
    step = first._step

    def stopping(images, labels):
        if first.progress.iteration == stop - 1:
            first._stop.signum = 15
        return step(images, labels)

    first._step = stopping
    with pytest.raises(Stopped):
        first.run()
    second = tiny_trainer(tiny_config(tmp_path / "two", **MODERN))
    second.resume(tmp_path / "two" / "last.pt")
    second.run()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_an_average_may_start_with_a_resumed_run(tmp_path):
    tiny_trainer(tiny_config(tmp_path, epochs=1, milestones=None)).run()
    later = tiny_trainer(tiny_config(tmp_path, ema_decay=0.9))
    later.resume(tmp_path / "last.pt")
    for name, value in later.module.state_dict().items():
        assert torch.equal(later.average.module.state_dict()[name], value)
    assert later.run().rows[0]["ema_top1"] is not None


def test_decay_groups_cannot_change_in_a_run(tmp_path):
    tiny_trainer(tiny_config(tmp_path, epochs=1, milestones=None)).run()
    later = tiny_trainer(tiny_config(tmp_path, norm_decay=False))
    with pytest.raises(CheckpointError, match="norm_decay was True, now False"):
        later.resume(tmp_path / "last.pt")


def test_all_parameters_are_in_one_group_once():
    model = Tiny()
    for norm_decay in (True, False):
        optimizer = make_sgd(decay_groups(model, norm_decay), torch.device("cpu"), 0.1, 0.9, 1e-4)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in model.parameters()}
        assert len(held) == len(list(model.parameters()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]


def test_an_average_of_a_network_that_stands_still_is_that_network():
    model = Tiny()
    average = Average(model, 0.9, 1)
    for iteration in range(1, 4):
        average.update(model, iteration, warming=False)
    for ours, theirs in zip(average.module.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def _warm(tmp_path, **options):
    values = {
        "num_images": 16 * 120, "epochs": 1, "milestones": None, "warmup_error": 80.0,
        "lr": 0.4, "log_every": 1,
    }  # fmt: skip
    return tiny_config(tmp_path, **{**values, **options})


def test_a_warm_up_ends_when_the_training_error_falls(tmp_path):
    """Looked at every WARMUP_WINDOW steps, over the images of those steps."""
    trainer = tiny_trainer(_warm(tmp_path))
    trainer.run()
    rates = [float(row["lr"]) for row in rows(tmp_path / "steps.csv")]
    end = rates.index(0.4)
    assert end in (WARMUP_WINDOW, 2 * WARMUP_WINDOW)
    assert rates == [0.04] * end + [0.4] * (len(rates) - end)


def test_a_warm_up_that_waits_is_resumed_exactly(tmp_path):
    tiny_trainer(_warm(tmp_path / "one")).run()
    first = tiny_trainer(_warm(tmp_path / "two"))
    step = first._step

    def stopping(images, labels):
        if first.progress.iteration == 30:
            first._stop.signum = 15
        return step(images, labels)

    first._step = stopping
    with pytest.raises(Stopped):
        first.run()
    second = tiny_trainer(_warm(tmp_path / "two"))
    second.resume(tmp_path / "two" / "last.pt")
    second.run()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_an_error_that_does_not_fall_keeps_the_low_rate(tmp_path):
    trainer = tiny_trainer(_warm(tmp_path, warmup_error=1e-6, num_images=16 * 55))
    trainer.run()
    assert {float(row["lr"]) for row in rows(tmp_path / "steps.csv")} == {0.04}


def test_batch_per_process_counts_one_process(tmp_path, capsys):
    command = [word for word in COMMAND if word not in ("--batch-size", "16")]
    command += ["--batch-per-process", "18", "--epochs", "1", "--milestones", "1"]
    assert cli.main([*command, "--lr-batch", "9", "--out", str(tmp_path)]) == 0
    steps = rows(tmp_path / "steps.csv")
    assert len(steps) == 5
    assert float(steps[0]["lr"]) == pytest.approx(0.2)
    assert checkpoint.load(tmp_path / "last.pt")["config"]["batch_size"] == 18


def test_the_modern_parts_go_through_the_command(tmp_path, capsys):
    options = ["--schedule", "cosine", "--warmup", "linear", "--warmup-iterations", "2",
               "--label-smoothing", "0.1", "--ema-decay", "0.9", "--no-norm-decay"]  # fmt: skip
    command = COMMAND[: COMMAND.index("--milestones")]
    assert cli.main([*command, *options, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "averaged" in out
    assert "of it waiting for input" in out
