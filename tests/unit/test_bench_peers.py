"""Every adapter that can run here really does and passes parity; the others say why they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fastres import models
from fastres.bench import EAGER, Comparison, cases, peers
from fastres.bench.compare import FAILED, MEASURED, REFUSED, SKIPPED
from fastres.bench.peers import PEERS, TIMM, TORCHVISION, Peer, library
from fastres.bench.peers.architecture import Architecture, architecture, read

ROOT = Path(__file__).resolve().parents[2]
FLAX_SCRIPT = ROOT / "tests" / "flax_peer.py"
TRAINING = cases.network("bottleneck14", 2, 32, optimizer=True)
INFERENCE = cases.inference("basic10", 2, 32)
WORKLOADS = (
    TRAINING,
    INFERENCE,
    cases.block("basic", 2, 8, 16),
    cases.convolution("layer4 3x3", 2, "bf16"),
    cases.network("resnet20", 2, 16),
)
CUDA = torch.cuda.is_available()


def entry_of(workload, peer):
    comparison = Comparison(workload)
    comparison.prepare(peer)
    comparison.check()
    return comparison.entries[peer if isinstance(peer, str) else peer.name]


def needs(*packages):
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.mark.parametrize("name", list(PEERS))
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_peer_runs_or_says_in_words_why_not(name, workload):
    reason = PEERS[name].unavailable(workload)
    assert reason is None or len(reason.split()) > 3


@pytest.mark.parametrize("network", ["bottleneck14", "basic10"])
@pytest.mark.parametrize("name", [TORCHVISION, TIMM])
def test_other_libraries_networks_agree(name, network):
    pytest.importorskip(name)
    entry = entry_of(cases.network(network, 2, 32, optimizer=True), name)
    assert entry.status == MEASURED, entry.reason
    module = PEERS[name].make(cases.network(network, 2, 32)).module
    assert type(module).__module__.startswith(name)


@needs("torchvision")
def test_other_libraries_networks_agree_in_eval_mode():
    entry = entry_of(INFERENCE, TORCHVISION)
    assert entry.status == MEASURED, entry.reason


@needs("timm")
def test_an_error_in_another_library_s_network_is_found():
    def planted(workload):
        step = PEERS[TIMM].make(workload)
        step.module.layer3[0].bn2.eps = 1e-2
        return step

    entry = entry_of(TRAINING, Peer("planted", planted, lambda workload: None))
    assert (entry.status, entry.samples) == (REFUSED, [])


@needs("onnx", "onnxruntime", "onnxscript")
def test_onnx_runtime_agrees_and_with_an_error_is_refused():
    workload = cases.inference("basic10", 2, 32, "fp16")
    step = PEERS[peers.ONNX_RUNTIME].make(workload)
    same = Peer("same", lambda workload: step, lambda workload: None)
    assert entry_of(workload, same).status == MEASURED
    forward = step.forward
    step.forward = lambda x: 1.02 * forward(x)
    assert entry_of(workload, same).status == REFUSED


@pytest.mark.skipif(CUDA, reason="there is a CUDA device")
def test_onnx_runtime_says_what_its_cpu_provider_lacks():
    reason = PEERS[peers.ONNX_RUNTIME].unavailable(cases.inference("basic10", 2, 32, "bf16"))
    assert "bf16" in reason


@needs("jax", "flax", "optax")
def test_flax_agrees_and_with_an_error_is_refused():
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(FLAX_SCRIPT)],
        check=False, capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    training, planted, inference = json.loads(done.stdout.splitlines()[-1])
    assert training["status"] == MEASURED, training["reason"]
    assert inference["status"] == MEASURED, inference["reason"]
    assert planted["status"] == REFUSED
    assert "relative error" in planted["reason"]
    assert training["peak_bytes"] > inference["peak_bytes"] > 0


def test_a_compiled_forward_pass_of_inference_agrees():
    entry = entry_of(INFERENCE, "torch.compile (aot_eager)")
    assert entry.status == MEASURED, entry.reason


@pytest.mark.skipif(CUDA, reason="there is a CUDA device")
@pytest.mark.parametrize("name", [peers.REDUCE_OVERHEAD, peers.EAGER_GRAPH])
def test_what_needs_cuda_graphs_is_skipped_with_the_reason(name):
    entry = entry_of(TRAINING, name)
    assert entry.status == SKIPPED
    assert "CUDA graphs" in entry.reason


def test_a_missing_and_a_broken_package_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('built for another torch')")
    (tmp_path / "lacking_library.py").write_text("import no_such_module")
    assert library.import_reason("no_such_library") == (
        "no_such_library is not installed (pip install no_such_library)"
    )
    assert "built for another torch" in library.import_reason("broken_library")
    assert "no_such_module" in library.import_reason("lacking_library")


def test_one_that_fails_as_it_runs_is_noted():
    def make(workload):
        raise RuntimeError("no kernel image is available")

    entry = entry_of(INFERENCE, Peer("failing", make, lambda workload: None))
    assert entry.status == FAILED
    assert "no kernel image" in entry.reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", Architecture(True, (3, 4, 6, 3), 1000)),
        ("resnet34", Architecture(False, (3, 4, 6, 3), 1000)),
        ("resnext50_32x4d", Architecture(True, (3, 4, 6, 3), 1000, 32, 4)),
        ("wide_resnet50_2", Architecture(True, (3, 4, 6, 3), 1000, 1, 128)),
    ],
)
def test_the_architecture_is_read_from_the_network(name, expected):
    assert architecture(cases.network(name, 1, 32)) == expected


@pytest.mark.parametrize(
    ("options", "why"),
    [({"shortcut": "C"}, "shortcuts"), ({"shortcut": "A"}, "shortcuts"),
     ({"replace_stride_with_dilation": (False, False, True)}, "dilated")],
)  # fmt: skip
def test_what_other_libraries_cannot_build_is_named(options, why):
    with torch.device("meta"):
        assert why in read(models.resnet50(**options))


def test_the_paper_s_strides_are_told_apart():
    with torch.device("meta"):
        assert read(models.resnet50(variant="v1")).first_strides
        assert not read(models.resnet50(variant="v1.5")).first_strides


def test_the_names_in_use_are_there():
    assert peers.get(EAGER) is PEERS[EAGER]
    for name in (peers.FUSED, peers.FUSED_NCHW, peers.EAGER_NCHW, peers.CONVOLUTIONS):
        assert peers.get(name).name == name


def test_every_peer_is_described():
    text = (ROOT / "docs" / "peers.md").read_text()
    assert [name for name in PEERS if f"`{name}`" not in text] == []
