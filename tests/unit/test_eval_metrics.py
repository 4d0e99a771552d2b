"""What is counted over a test set, against SciPy and against counting by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastres.evaluation.metrics import Share, Tally
from fastres.evaluation.report import class_rows


@pytest.mark.parametrize(("hits", "images"), [(0, 1), (1, 1), (3, 7), (0, 50), (38_000, 50_000)])
def test_the_interval_is_wilsons(hits, images):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(hits, images).proportion_ci(0.95, method="wilson")
    assert Share(hits, images).interval == pytest.approx((100 * expected.low, 100 * expected.high))


def test_an_empty_share_is_no_number():
    assert all(math.isnan(value) for value in (Share(0, 0).percent, *Share(0, 0).interval))


def counted(outputs: torch.Tensor, labels: torch.Tensor, average: str, parts: int) -> Tally:
    tally = Tally(outputs.shape[1])
    for some, classes in zip(outputs.chunk(parts), labels.chunk(parts), strict=True):
        tally.add(some, classes, average)
    return tally


def test_sums_over_batches():
    scores, labels = torch.randn(60, 12), torch.randint(0, 12, (60,))
    tally = counted(scores, labels, "scores", 4)
    order = scores.argsort(1, descending=True)
    assert tally.images == 60
    pairs = list(zip(order.tolist(), labels.tolist(), strict=True))
    assert tally.top1.hits == sum(first[0] == label for first, label in pairs)
    assert tally.top5.hits == sum(label in first[:5] for first, label in pairs)
    assert tally.loss == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-6)
    averaged = counted(scores.softmax(1), labels, "probabilities", 1)
    assert averaged.loss == pytest.approx(tally.loss, rel=1e-5)


def test_fewer_than_five_classes():
    tally = counted(torch.randn(9, 3), torch.arange(9) % 3, "scores", 1)
    assert (tally.top, tally.top5.hits) == (3, 9)


def test_a_probability_of_nothing_costs_no_infinity():
    tally = Tally(2)
    tally.add(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), "probabilities")
    assert math.isfinite(tally.loss)


def test_classes():
    guesses, labels = [0, 0, 1, 1, 2, 0], [0, 0, 0, 0, 0, 2]
    tally = Tally(4)
    tally.add(F.one_hot(torch.tensor(guesses), 4).float(), torch.tensor(labels), "scores")
    ant, bee, cat, _ = class_rows(tally, ("ant", "bee", "cat", "dog"))
    assert (ant["images"], ant["top1"], ant["taken_for"], ant["times"]) == (5, 40.0, "bee", 2)
    assert (cat["images"], cat["top1"], cat["taken_for"], cat["times"]) == (1, 0.0, "ant", 1)
    assert (bee["images"], bee["taken_for"], bee["times"]) == (0, "", 0)
    assert math.isnan(bee["top1"])
    assert ant["top1_low95"] < 40 < ant["top1_high95"]
