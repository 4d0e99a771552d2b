"""Learning rates over a run."""

from __future__ import annotations

import pytest

from fastres.training.config import TrainConfig
from fastres.training.schedule import PlateauSchedule, make_schedule


def test_step_schedule_divides_at_iterations():
    schedule = make_schedule(TrainConfig.build("cifar10"), steps_per_epoch=352)
    rates = [schedule.lr(i) for i in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_milestones_count_epochs_in_a_run_of_epochs():
    config = TrainConfig.build("synthetic", epochs=4, milestones=(2,))
    schedule = make_schedule(config, steps_per_epoch=10)
    assert schedule.lr(19) == pytest.approx(0.1)
    assert schedule.lr(20) == pytest.approx(0.01)


def test_warm_up_of_depth_110():
    schedule = make_schedule(TrainConfig.build("cifar10", model="resnet110"), 352)
    assert [schedule.lr(i) for i in (0, 399, 4000)] == pytest.approx([0.01] * 3)
    schedule.warmup.observe(80.0)  # below 80, not at it
    assert schedule.lr(400) == pytest.approx(0.01)
    schedule.warmup.observe(79.9)
    assert [schedule.lr(i) for i in (0, 401, 32_000)] == pytest.approx([0.1, 0.1, 0.01])
    again = make_schedule(TrainConfig.build("cifar10", model="resnet110"), 352)
    again.load_state_dict(schedule.state_dict())
    assert again == schedule
    fixed = make_schedule(
        TrainConfig.build("cifar10", model="resnet110", warmup_iterations=400), 352
    )
    assert [fixed.lr(i) for i in (0, 399, 400)] == pytest.approx([0.01, 0.01, 0.1])


def test_plateau_divides_after_patience_and_resumes():
    config = TrainConfig.build("synthetic", schedule="plateau", patience=2)
    schedule = make_schedule(config, 10)
    for error in (50, 40, 41, 42):
        assert schedule.lr(0) == pytest.approx(0.1)
        schedule.observe(error)
    assert schedule.lr(0) == pytest.approx(0.01)
    schedule.observe(41)
    again = make_schedule(config, 10)
    assert isinstance(again, PlateauSchedule)
    again.load_state_dict(schedule.state_dict())
    assert again == schedule
    again.observe(40)  # as good as the best is not better
    assert again.lr(0) == pytest.approx(0.001)
