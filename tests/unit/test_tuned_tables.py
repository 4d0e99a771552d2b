"""Tuned tables: which row wins, the user's own table, and what a malformed one says."""

from __future__ import annotations

import json

import pytest
import torch

from fastres.kernels import tables, tuned

GPU = "NVIDIA H200"
ROW = {
    "operator": "conv1x1",
    "families": ["sm_90"],
    "dtypes": ["bfloat16"],
    "prologue": True,
    "shape": {"inner": 64, "outer": 256},
    "provider": "triton",
    "config": {"BLOCK_M": 256, "BLOCK_N": 32, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2},
    "measured": {"microseconds": 12.5},
    "reason": "measured: a test",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of user tables."""
    monkeypatch.setenv("FASTRES_CONFIGS", str(tmp_path))
    tuned.forget()
    yield tmp_path
    tuned.forget()


def write(folder, *rows, gpu=GPU):
    path = tables.user_path(GPU)
    assert path.parent == folder
    path.write_text(json.dumps({"gpu": gpu, "versions": None, "rows": list(rows)}))
    return path


def chosen(inner=64, outer=256, dtype="bfloat16", gpu=GPU):
    with tuned.choosing_for(gpu, "sm_90"):
        return tuned.choose(
            "conv1x1", torch.device("cpu"), dtype, prologue=True, inner=inner, outer=outer
        )


def test_the_users_table_comes_first(folder):
    shipped = chosen()
    write(folder, ROW)
    assert chosen() == shipped, "a table is read once per process"
    tuned.forget()
    assert chosen() == tuned.Choice("triton", ROW["config"])
    # near shapes too, far ones are the shipped table's; other dtypes and GPUs are not concerned
    assert chosen(inner=128).config == ROW["config"]
    assert chosen(inner=512, outer=1024).config != ROW["config"]
    assert chosen(dtype="float16").config != ROW["config"]
    assert chosen(gpu="NVIDIA H100").config != ROW["config"]


def test_without_a_row_the_shipped_tables_serve(folder):
    write(folder)
    assert chosen().provider in tables.PROVIDERS
    with pytest.raises(LookupError, match="no row for operator conv1x1, dtype float64"):
        chosen(dtype="float64")


def test_the_folder_is_the_caches_unless_named(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTRES_CONFIGS", raising=False)
    monkeypatch.setenv("FASTRES_CACHE", str(tmp_path))
    assert tables.user_path("NVIDIA A100-SXM4-80GB") == (
        tmp_path / "configs" / "nvidia-a100-sxm4-80gb.json"
    )
    assert tables.user_table("NVIDIA A100-SXM4-80GB") is None


def test_a_folder_that_is_not_there_is_an_error(folder, monkeypatch):
    monkeypatch.setenv("FASTRES_CONFIGS", str(folder / "gone"))
    with pytest.raises(tables.TableError, match="FASTRES_CONFIGS must name a folder, got"):
        chosen()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provider": "cublas"}, "row 2 (conv1x1): provider must be one of triton, cudnn, got"),
        ({"config": {"BLOCK_M": 1.5}}, "row 2 (conv1x1): config.BLOCK_M must be a whole number"),
        ({"config": None}, "row 2 (conv1x1): config must be an object"),
        ({"shape": {"inner": 0}}, "row 2 (conv1x1): shape.inner must be a whole number of at le"),
        ({"families": ["sm_89"]}, "row 2 (conv1x1): families must be a list out of sm_80, sm_90"),
        ({"dtypes": []}, "row 2 (conv1x1): dtypes must be a list out of float16, bfloat16"),
        ({"measured": {"seconds": 1}}, "row 2 (conv1x1): measured must be null or an object with"),
        ({"measured": {"microseconds": -1}}, "row 2 (conv1x1): measured must be null or an obj"),
        ({"reason": ""}, "row 2 (conv1x1): reason must be text, got ''"),
        ({"operator": 7}, "row 2: operator must be text, got 7"),
        ({"prologue": "yes"}, "row 2 (conv1x1): prologue must be true or false, got 'yes'"),
        ({"blocks": 1}, "row 2 (conv1x1): it lacks nothing and must not have ['blocks']"),
    ],
)
def test_a_malformed_row_is_named(folder, change, message):
    path = write(folder, ROW, ROW | change)
    with pytest.raises(tables.TableError) as info:
        chosen()
    assert message in str(info.value)
    assert str(path) in str(info.value)


def test_a_row_that_lacks_a_field_is_named(folder):
    write(folder, {name: value for name, value in ROW.items() if name != "measured"})
    with pytest.raises(tables.TableError, match=r"row 1 \(conv1x1\): it lacks measured"):
        chosen()


@pytest.mark.parametrize("text", ["{", "[]", '{"gpu": "NVIDIA H200"}', '{"gpu": 1, "rows": []}'])
def test_a_file_that_is_no_table_is_named(folder, text):
    path = tables.user_path(GPU)
    path.write_text(text)
    with pytest.raises(tables.TableError, match=path.name):
        chosen()


def test_another_gpus_table_is_refused(folder):
    write(folder, ROW, gpu="NVIDIA A100")
    with pytest.raises(tables.TableError, match="gpu must be 'NVIDIA H200', got 'NVIDIA A100'"):
        chosen()


def test_shipped_tables_are_well_formed():
    for path in tables.CONFIGS.glob("*.json"):
        tables.read(path)


def test_a_watcher_sees_and_changes_choices(folder):
    other = tuned.Choice("triton", {"BLOCK_M": 16})
    seen = []

    def watcher(key, choice):
        seen.append((key, choice))
        return other

    before = chosen()
    with tuned.watching(watcher):
        assert chosen() == other
    key = tuned.Key("conv1x1", "bfloat16", True, (("inner", 64), ("outer", 256)))
    assert seen == [(key, before)]
    assert chosen() == before


def test_fingerprints_tell_tables_apart(folder, monkeypatch):
    monkeypatch.setattr(tuned, "chip", lambda device: (GPU, "sm_90"))
    device = torch.device("cuda")
    gpu, empty, paths = tuned.fingerprint(device)
    assert gpu == GPU
    assert any(path.endswith("default.json") for path in paths)
    own = write(folder, ROW)
    assert tuned.fingerprint(device)[1] == empty, "a table is read once per process"
    tuned.forget()
    _, changed, paths = tuned.fingerprint(device)
    assert changed != empty
    assert paths[0] == str(own)
