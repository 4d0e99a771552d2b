"""The search for the largest batch: its steps, and attempts in processes that run out of memory."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from fastres.bench import EAGER, FUSED, largest_batch
from fastres.bench.largest_batch import CAP, OOM, Attempt, Request, largest, search

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory on Linux")


def fits_up_to(limit, *, memory=True):
    def attempt(batch):
        ok = batch <= limit
        return Attempt(batch, ok, None if ok else "out of memory", memory)

    return attempt


@pytest.mark.parametrize("limit", [*range(1, 20), 100, 513])
def test_the_largest_batch_is_found_exactly(limit):
    found = largest(fits_up_to(limit), start=4)
    assert (found.batch, found.limit, found.reason) == (limit, OOM, None)
    assert {one.batch for one in found.tried} >= {limit, limit + 1}
    assert len({one.batch for one in found.tried}) == len(found.tried)


def test_it_is_doubled_and_then_halved():
    found = largest(fits_up_to(11), start=1)
    assert [one.batch for one in found.tried] == [1, 2, 4, 8, 16, 12, 10, 11]


def test_close_is_enough_where_that_is_asked_for():
    found = largest(fits_up_to(1000), precision=0.1)
    too_large = min(one.batch for one in found.tried if not one.ok)
    assert found.batch <= 1000 < too_large
    assert too_large - found.batch <= 0.1 * found.batch
    assert len(found.tried) < len(largest(fits_up_to(1000)).tried)


def test_a_cap_ends_it():
    found = largest(fits_up_to(1000), cap=48)
    assert [one.batch for one in found.tried] == [1, 2, 4, 8, 16, 32, 48]
    assert (found.batch, found.limit) == (48, CAP)


def test_nothing_fits():
    found = largest(fits_up_to(0), start=4)
    assert [one.batch for one in found.tried] == [4, 2, 1]
    assert (found.batch, found.limit) == (None, OOM)


def test_what_fails_for_another_reason_is_not_searched():
    found = largest(fits_up_to(0, memory=False), start=4)
    assert [one.batch for one in found.tried] == [4]
    assert (found.batch, found.limit, found.reason) == (None, None, "out of memory")
    slow = largest(lambda batch: Attempt(batch, batch < 8, "too slow", batch < 8))
    assert (slow.batch, slow.limit) == (4, CAP)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
        "std::bad_alloc",
        "could not execute a primitive",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes",
        "CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_allocators_are_understood(message):
    assert largest_batch._NO_MEMORY.search(message)
    assert not largest_batch._NO_MEMORY.search("expected 3 channels, got 4")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"start": 0}, "start"),
        ({"start": 4, "cap": 2}, "cap"),
        ({"precision": 1.0}, "precision"),
        ({"limit_bytes": 0}, "limit_bytes"),
    ],
)
def test_bad_arguments_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        search([FUSED], "resnet20", 16, **options)
    with pytest.raises(ValueError, match="implementation must be one of"):
        search(["magic"], "resnet20", 16)


@LINUX
def test_a_search_records_what_fits_and_what_does_not():
    told = []
    found = search(
        [FUSED, "eager CUDA graph"], "resnet20", 16, cap=1, threads=1,
        on_attempt=lambda name, attempt: told.append((name, attempt)),
    )  # fmt: skip
    fused = found["implementations"][FUSED]
    assert fused == {"batch": 1, "tried": [[1, True, None]], "limit": CAP}
    assert told == [(FUSED, Attempt(1, True))]
    if not torch.cuda.is_available():
        graph = found["implementations"]["eager CUDA graph"]
        assert (graph["batch"], graph["tried"], graph["limit"]) == (None, [], None)
        assert "CUDA" in graph["reason"]
    assert (found["model"], found["dtype"], found["image_size"]) == ("resnet20", "fp32", 16)
    json.dumps(found, allow_nan=False)
    assert largest_batch.title(found) == "training resnet20 fp32, 16x16, on cpu"
    (name, batch, why), (other, none, reason) = largest_batch.rows(found)
    assert (name, batch, why) == (FUSED, "1", "no larger one was tried")
    assert (other, none) == ("eager CUDA graph", "") or torch.cuda.is_available()
    assert reason


@LINUX
def test_a_process_without_memory_says_so():
    request = Request("resnet20", 64, threads=1, limit_bytes=2**24)
    done = largest_batch._attempt(request, EAGER, 256, 60)
    assert (done.ok, done.memory) == (False, True)
    assert "memory" in done.reason


def test_one_that_takes_too_long_ends_the_search():
    done = largest_batch._attempt(Request("resnet20", 16, threads=1), EAGER, 1, 0.01)
    assert (done.ok, done.memory) == (False, False)
    assert "not finished within" in done.reason
