"""`fastres info` tells what works, and why the rest does not."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from fastres import backends, extension, info
from fastres.extension import toolchain
from fastres.extension.toolchain import Unavailable


@pytest.fixture(scope="module")
def facts():
    return info.collect()


def test_text_has_every_backend_with_its_reason(facts):
    text = info.report(facts)
    _, _, section = text.partition("\nbackends\n")
    lines = dict(line.split(maxsplit=1) for line in section.splitlines()[:3])
    assert lines == {
        name: "works" if reason is None else f"no: {reason}"
        for name, reason in backends.available().items()
    }
    assert torch.__version__ in text


def test_extension_is_the_one_that_is_loaded(facts):
    stated = facts["extension"]["cpu"]
    assert (stated["path"] is not None) == extension.load()
    assert (stated["reason"] is None) == extension.load()
    if stated["path"]:
        assert f"{stated['path']} ({stated['origin']}, {stated['key']})" in info.report(facts)


def test_cuda_is_loaded_or_has_a_reason(facts):
    cuda = facts["extension"]["cuda"]
    assert (cuda["path"] is None) != (cuda["reason"] is None)


def test_missing_extra_is_named(facts, monkeypatch):
    found = info._version

    def without_rich(distribution):
        return None if distribution == "rich" else found(distribution)

    monkeypatch.setattr(info, "_version", without_rich)
    text = info.report(info.collect())
    line = next(line for line in text.splitlines() if line.split()[:1] == ["progress"])
    assert line.endswith("missing rich")


def test_no_compiler_is_a_line_not_an_error(monkeypatch):
    def none():
        raise Unavailable("no C++ compiler (g++: not found); install g++")

    # looked at directly: a library that is loaded already needs no compiler
    monkeypatch.setattr(toolchain, "find_compiler", none)
    stated = info.collect()["compilers"]["c++"]
    assert stated == "none: no C++ compiler (g++: not found); install g++"


def test_json(capsys):
    parser = argparse.ArgumentParser()
    info.add_arguments(parser)
    assert info.main(parser.parse_args(["--json"])) == 0
    assert json.loads(capsys.readouterr().out)["torch"]["version"] == torch.__version__
    assert info.main(parser.parse_args([])) == 0
    assert capsys.readouterr().out.startswith("versions\n")
