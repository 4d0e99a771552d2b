"""The memory of the fused operators: reused, given back, and alive as long as its tensors."""

from __future__ import annotations

import gc
import os
import platform
import signal
import subprocess
import sys
import threading

import pytest
import torch

from fastres import extension

pytestmark = pytest.mark.skipif(
    extension.unavailable_reason() is not None, reason="the C++ extension cannot be built here"
)

MIB = 1 << 20
SLACK = 1 << 14  # what a place may hold beside its tensor


@pytest.fixture
def pool():
    """Its operators, with nothing of earlier tests in the way."""
    extension.load()
    gc.collect()
    torch.ops.fastres_native.pool_release()
    return torch.ops.fastres_native


def image(mib: int = 1) -> torch.Tensor:
    return torch.randn(mib, 64, 64, 64).contiguous(memory_format=torch.channels_last)


def used(pool) -> int:
    return pool.pool_statistics()[0]


def test_statistics_follow_a_tensors_life(pool):
    x = image()
    before, _, _ = pool.pool_statistics()
    out = pool.pad_shortcut(x, 64, 1)
    now, held, peak = pool.pool_statistics()
    assert MIB <= now - before <= MIB + SLACK
    assert held >= now
    assert peak >= now
    del out
    after = pool.pool_statistics()
    assert after == (before, held, peak)


def test_freed_memory_is_taken_again(pool):
    x = image()
    out = pool.pad_shortcut(x, 64, 1)
    place, held = out.data_ptr(), pool.pool_statistics()[1]
    for _ in range(20):
        del out
        out = pool.pad_shortcut(x, 64, 1)
        assert out.data_ptr() == place
    assert pool.pool_statistics()[1] == held


def test_small_tensors_come_from_elsewhere(pool):
    before = used(pool)
    kept = [pool.pad_shortcut(torch.randn(1, 4, 8, 8), 4, 1) for _ in range(10)]
    assert used(pool) == before
    assert len(kept) == 10


def test_other_tensors_come_from_elsewhere(pool):
    pool.pad_shortcut(image(), 64, 1)
    before = used(pool)
    kept = torch.empty(4 * MIB)
    assert used(pool) == before
    assert kept.numel() == 4 * MIB


def test_free_neighbours_are_joined(pool):
    x = image()
    parts = [pool.pad_shortcut(x, 64, 1) for _ in range(4)]
    places = sorted(part.data_ptr() for part in parts)
    order = [parts[i] for i in (2, 0, 3, 1)]
    del parts
    while order:
        order.pop()
    whole = pool.pad_shortcut(image(4), 64, 1)
    assert whole.data_ptr() <= places[0]


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_release_spares_the_pages_that_live_tensors_share_with_free_places(pool):
    """The regression: madvise rounds lengths up, into the tensor behind a free place."""
    x = image()
    outs = [pool.pad_shortcut(x, 64, 1) for _ in range(9)]
    for freed in ([1], [2, 5], [6, 0]):
        for i in freed:
            outs[i] = None
        pool.pool_release()
        assert all(torch.equal(out, x) for out in outs if out is not None)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_release_gives_pages_back_and_keeps_live_tensors(pool):
    x = image(32)
    keep = pool.pad_shortcut(x[:1], 64, 1)
    large = pool.pad_shortcut(x, 64, 1)
    assert torch.equal(large, x)
    del large
    before, held, _ = pool.pool_statistics()
    full = resident()
    pool.pool_release()
    assert pool.pool_statistics()[0] == before
    assert pool.pool_statistics()[1] <= held - 32 * MIB + 2 * MIB
    assert resident() <= full - 24 * MIB
    assert torch.equal(keep, x[:1])
    assert torch.equal(pool.pad_shortcut(x, 64, 1), x)


def test_a_tensor_outlives_what_made_it(pool):
    x = image()
    views = [pool.pad_shortcut(x, 64, 1)[:, 3:5].flatten() for _ in range(3)]
    other = pool.pad_shortcut(x * 0, 64, 1)
    assert all(torch.equal(view, x[:, 3:5].flatten()) for view in views)
    assert not other.any()


def test_threads_do_not_share_a_place(pool):
    """Two threads allocate, fill, check and free at once; a third frees what others made."""
    wrong: list[str] = []
    handed: list[torch.Tensor] = []
    before = used(pool)
    x = image()

    def work(value: float) -> None:
        for turn in range(60):
            out = pool.pad_shortcut(x, 64 + turn % 3, 1)
            out.fill_(value + turn)
            again = pool.pad_shortcut(x, 64, 1)
            if not (out == value + turn).all() or not torch.equal(again, x):
                wrong.append(f"{value} at {turn}")
            if turn % 10 == 0:
                handed.append(out)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1e3, 2e3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(handed) == 12
    cleaner = threading.Thread(target=handed.clear)
    cleaner.start()
    cleaner.join()
    assert used(pool) == before


def test_a_scope_is_of_its_thread(pool):
    """A plain tensor made on another thread while an operator runs is no affair of the pool's."""
    stop, sizes = threading.Event(), []

    def plain() -> None:
        while not stop.is_set():
            sizes.append(torch.empty(MIB).data_ptr())

    thread = threading.Thread(target=plain)
    thread.start()
    x, before = image(), used(pool)
    outs = [pool.pad_shortcut(x, 64, 1) for _ in range(30)]
    now = used(pool)
    stop.set()
    thread.join()
    assert sizes
    assert 30 * MIB <= now - before <= 30 * (MIB + SLACK)
    del outs
    assert used(pool) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_pool_of_its_own(pool):
    x = image()
    ours = pool.pad_shortcut(x, 64, 1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            right = torch.equal(ours, x)
            ours.zero_()
            out = pool.pad_shortcut(x, 64, 1)
            code = 0 if right and torch.equal(out, x) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(ours, x)


OTHER_BLOCKS = """
import ctypes, torch
from fastres import extension

extension.load()
if {ours}:
    torch.ops.fastres_native.pad_shortcut(torch.randn(1, 4, 8, 8), 4, 1)
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
block = libc.malloc(24 << 20)
end = libc.sbrk(0)
libc.free(block)
print(block < end, libc.sbrk(0) == end)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
@pytest.mark.parametrize(("ours", "kept"), [(False, "False True"), (True, "True True")])
def test_malloc_keeps_large_blocks_for_other_tensors(ours, kept):
    """Within malloc's own region, and still there when freed, as after a step of PyTorch's. The
    regression: some 24 MB of every step went back to the system and had to be cleared again."""
    program = OTHER_BLOCKS.format(ours=ours)
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == kept


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_another_thread_is_inside_does_not_hang(pool):
    """The regression: it was left a lock whose holder it does not have. One fork in five hung."""
    x = torch.randn(1, 2, 128, 128).contiguous(memory_format=torch.channels_last)
    kept = [pool.pad_shortcut(x, 2, 1) for _ in range(400)]
    del kept[::2]  # many free places make a release long
    stop = threading.Event()

    def release() -> None:
        while not stop.is_set():
            pool.pool_release()

    thread = threading.Thread(target=release)
    thread.start()
    try:
        codes = []
        while len(codes) < 40 and not any(codes):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                pool.pool_statistics()
                os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    finally:
        stop.set()
        thread.join()
    assert not any(codes)


def test_a_tensor_of_the_pool_can_be_resized_saved_and_shared(pool, tmp_path):
    x = image()
    out = pool.pad_shortcut(x, 64, 1)
    torch.save(out, tmp_path / "t.pt")
    assert torch.equal(torch.load(tmp_path / "t.pt", weights_only=True), x)
    out.share_memory_()
    assert torch.equal(out, x)
    grown = pool.pad_shortcut(x, 64, 1).flatten()
    grown.resize_(2 * MIB)
    assert torch.equal(grown[: x.numel()], x.flatten())
