"""`fastres tune` on a GPU: it measures, verifies, writes a table, and the next process uses it."""

from __future__ import annotations

import json
import os

import pytest
import torch

from fastres import cli
from fastres.bench.operator_calls import Call, TensorSpec
from fastres.bench.replay import copies_needed, on_device
from fastres.kernels import tables, tuned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is for CPU tensors"
    ),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRES_CONFIGS", str(tmp_path))
    tuned.forget()
    yield tmp_path
    tuned.forget()


def tune(*arguments: str) -> list[dict]:
    """The rows of the table that a small tuning writes."""
    small = ["--model", "bottleneck14", "--batch", "8", "--image-size", "64", "--rounds", "3"]
    assert cli.main(["tune", *small, "--candidates", "3", "--jobs", "4", *arguments]) == 0
    (path,) = (p for p in tables.user_folder().glob("*.json"))
    assert path == tables.user_path(torch.cuda.get_device_name())
    return json.loads(path.read_text())["rows"]


def test_a_table_is_written_and_used(folder):
    rows = tune("--operators", "bn_apply", "expand")
    assert {row["operator"] for row in rows} == {"bn_apply", "expand"}
    assert all(row["measured"]["microseconds"] > 0 for row in rows)
    assert all(row["measured"]["versions"]["torch"] == torch.__version__ for row in rows)
    tuned.forget()
    row = next(row for row in rows if row["operator"] == "expand")
    chosen = tuned.choose(
        "expand",
        torch.device("cuda", 0),
        row["dtypes"][0],
        prologue=row["prologue"],
        **row["shape"],
    )
    assert chosen == tuned.Choice(row["provider"], row["config"])


def test_no_shipped_choice_is_rejected(folder, capsys):
    """The configs in use are right for every operator of the network, whole blocks included."""
    rows = tune()
    assert {"expand", "moments", "expand_backward_data"} <= {row["operator"] for row in rows}
    assert all(row["measured"]["before_microseconds"] for row in rows)
    assert "not measured" not in capsys.readouterr().out


def test_a_sample_runs_as_a_graph_over_all_buffers():
    device = torch.device("cuda", 0)
    sets = [(torch.zeros(4, device=device),) for _ in range(3)]
    sample = on_device(lambda x: x.add_(1), sets, device)
    before = [float(x[0]) for (x,) in sets]
    sample(0)
    sample(1)
    torch.cuda.synchronize()
    assert [float(x[0]) for (x,) in sets] == [value + 2 for value in before]
    small = Call("bn_stats", (TensorSpec((1, 8, 4, 4), (128, 1, 32, 8), torch.float16),))
    assert copies_needed(small.nbytes, device) > 1
