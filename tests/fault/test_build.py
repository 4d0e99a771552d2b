"""The build on first use: together, killed half way, without a compiler, with a damaged cache."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_library

from fastres.extension import cache, library
from fastres.extension.compile import LIBRARY_FILE, RECORD_FILE

PROGRAM = Path(tiny_library.__file__)


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """Environment of a process that builds the tiny library into a cache of its own."""
    root = tmp_path / "sources of it"
    root.mkdir()
    tiny_library.write(root)
    stated = {
        "TINY_ROOT": str(root),
        "CXX": f"'{root / 'slow-g++'}'",
        "FASTRES_CACHE": str(tmp_path / "cache"),
        "FASTRES_BUILD": "1",
    }
    for name, value in stated.items():
        monkeypatch.setenv(name, value)
    return root


def start(**extra: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        env={**os.environ, **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[dict, str]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(out), errors


def compilations(root: Path) -> int:
    log = root / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def entry(root: Path) -> Path:
    return cache.folder() / tiny_library.recipe(root).key


def test_two_processes_at_once_both_work_and_one_compiles(setting):
    both = [start(TINY_SECONDS="3"), start(TINY_SECONDS="3")]
    results = [finish(process) for process in both]
    assert [result["answer"] for result, _ in results] == [42, 42]
    assert compilations(setting) == 1
    assert sorted(errors.count("compiling tiny") for _, errors in results) == [0, 1]


def test_killed_while_compiling_the_next_load_works_at_once(setting):
    victim = start(TINY_SECONDS="30")
    deadline = time.monotonic() + 60
    while compilations(setting) == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert compilations(setting) == 1
    assert not entry(setting).exists()
    assert entry(setting).with_suffix(".lock").exists()
    started = time.monotonic()
    assert tiny_library.library(setting).load()
    assert time.monotonic() - started < 20


def test_builds_at_once_without_working_locks(setting, monkeypatch):
    monkeypatch.setattr(cache, "_turn", lambda path: contextlib.nullcontext())
    monkeypatch.setenv("TINY_SECONDS", "0.5")
    recipe = tiny_library.recipe(setting)
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: cache.build(recipe), range(4)))
    assert compilations(setting) == 4
    assert built == [entry(setting) / LIBRARY_FILE] * 4
    assert cache.lookup(recipe) is not None
    assert not list(cache.folder().glob("building-*"))


def test_lock_file_left_behind_means_nothing(setting):
    cache.folder().mkdir()
    entry(setting).with_suffix(".lock").write_text("4194304\n")
    assert tiny_library.library(setting).load()


@pytest.mark.parametrize("damage", ["truncated library", "no record", "record of something else"])
def test_damaged_entry_is_built_again(setting, damage):
    assert tiny_library.library(setting).load()
    built = entry(setting) / LIBRARY_FILE
    record = entry(setting) / RECORD_FILE
    if damage == "truncated library":
        # another file of the same name: this process has the old one mapped
        content = built.read_bytes()
        built.unlink()
        built.write_bytes(content[: len(content) // 2])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("[]")
    assert tiny_library.library(setting).load()
    assert compilations(setting) == 2
    assert cache.lookup(tiny_library.recipe(setting)) == built
    assert not list(cache.folder().glob("building-*"))


def test_entry_that_does_not_load_is_built_again(setting, monkeypatch):
    assert tiny_library.library(setting).load()
    opened = []

    def refuse_once(path):
        opened.append(path)
        if len(opened) == 1:
            raise OSError("version `GLIBC_9.99' not found")

    monkeypatch.setattr(library.torch.ops, "load_library", refuse_once)
    assert tiny_library.library(setting).load()
    assert compilations(setting) == 2


def test_changed_source_is_another_entry(setting):
    before = tiny_library.recipe(setting).key
    (setting / "library.cpp").write_text(tiny_library.SOURCE.replace("42", "43"))
    assert tiny_library.recipe(setting).key != before


def test_leftovers_of_killed_builds_are_removed_after_a_day(setting):
    old, young = (cache.folder() / f"building-{name}" for name in ("old", "young"))
    for left in (old, young):
        left.mkdir(parents=True)
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    assert tiny_library.library(setting).load()
    assert not old.exists()
    assert young.exists()


def test_compile_error_is_told_once_with_the_compilers_words(setting):
    (setting / "library.cpp").write_text("int answer( { return 42; }\n")
    broken = tiny_library.library(setting)
    with pytest.warns(RuntimeWarning, match=r"slower path(.|\n)*error: expected"):
        assert not broken.load()
    # a second warning would be an error here
    assert not broken.load()
    assert compilations(setting) == 1
    assert "error: expected" in broken.reason
    assert not list(cache.folder().glob("building-*"))


def test_building_can_be_forbidden_and_is_then_silent(setting, monkeypatch):
    monkeypatch.setenv("FASTRES_BUILD", "0")
    unbuilt = tiny_library.library(setting)
    assert not unbuilt.load()
    assert "FASTRES_BUILD=0" in unbuilt.reason
    assert compilations(setting) == 0


def test_cache_folder_that_cannot_be_written_is_named(setting, monkeypatch, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("FASTRES_CACHE", str(blocked / "cache"))
    with pytest.warns(RuntimeWarning, match="a file/cache cannot be used.*FASTRES_CACHE"):
        assert not tiny_library.library(setting).load()


NO_COMPILER = """
import sys, warnings
from pathlib import Path
import torch
import fastres
from fastres import backends, extension
from fastres.extension import library

library.ahead_of_time_files = lambda name: (Path("/nonexistent"), Path("/nonexistent"))
x = torch.randn(2, 3, 5, 5)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    outs = [fastres.functional.pad_shortcut(x, 8, 2) for _ in range(2)]
assert [w.category for w in caught] == [RuntimeWarning], caught
assert "no C++ compiler" in str(caught[0].message), caught[0].message
assert all(torch.equal(out[:, :3], x[:, :, ::2, ::2]) and not out[:, 3:].any() for out in outs)
assert set(backends.counts()) == {"pad_shortcut:reference"}, backends.counts()
assert "no C++ compiler" in backends.available()["native"]
try:
    with fastres.backend("native"):
        pass
except RuntimeError as error:
    print(error)
"""


def test_without_a_compiler_one_warning_and_the_reference_path(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NO_COMPILER],
        env={
            **{name: value for name, value in os.environ.items() if name != "FASTRES_BACKEND"},
            "PATH": str(tmp_path),
            "CXX": "",
            "FASTRES_BUILD": "1",
            "FASTRES_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "backend 'native' cannot run here: no C++ compiler" in done.stdout
