"""Training with the whole step captured in a CUDA graph is training without, bit for bit."""

from __future__ import annotations

import pytest
import torch
from training_runs import assert_same_run, rows, tiny_config, tiny_trainer

from fastres import models
from fastres.training.errors import Stopped, TrainingError
from fastres.training.reporter import Silent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

NETWORKS = ("resnet20", "plain")
# a batch that the classes' count and the network can bear, twelve steps of which every sixth is
# a short one; the learning rate falls after the first epoch
RUN = {"device": "cuda", "image_size": 32, "batch_size": 16, "num_images": 90}


@pytest.fixture(autouse=True)
def one_algorithm():
    """cuDNN's choice must not differ between the runs that are compared."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.create("resnet20", num_classes=10, fused=name != "plain")


def run(folder, name: str = "resnet20", **options):
    trainer = tiny_trainer(tiny_config(folder, **RUN | options), network(name))
    trainer.run()
    return trainer


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_graphed_run_is_the_eager_run(tmp_path, name, amp):
    """Losses, weights, momenta, scaler and statistics, over two epochs."""
    run(tmp_path / "eager", name, amp=amp)
    run(tmp_path / "graph", name, amp=amp, cuda_graph=True)
    assert_same_run(tmp_path / "eager", tmp_path / "graph")


class StopAt(Silent):
    """Asks the trainer to stop after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left, self.trainer = steps, None

    def step(self, done: int, loss: float | None) -> None:
        self.left -= 1
        if self.left == 0:
            self.trainer._stop.signum = 15


@pytest.mark.parametrize("resumed", [True, False])
@pytest.mark.parametrize("steps", [2, 5, 6, 9])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, steps, resumed):
    """Stopped in the warm-up, under the graph, at an epoch's end; resumed with a graph or not."""
    run(tmp_path / "one", cuda_graph=True)
    config = tiny_config(tmp_path / "two", **RUN, cuda_graph=True)
    reporter = StopAt(steps)
    reporter.trainer = tiny_trainer(config, network("resnet20"), reporter)
    with pytest.raises(Stopped):
        reporter.trainer.run()
    config = tiny_config(tmp_path / "two", **RUN, cuda_graph=resumed)
    again = tiny_trainer(config, network("resnet20"))
    again.resume(tmp_path / "two" / "last.pt")
    again.run()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_checkpoint_goes_on_on_a_cpu(tmp_path):
    run(tmp_path, cuda_graph=True, epochs=1, milestones=None)
    config = tiny_config(tmp_path, **RUN | {"device": "cpu"})
    trainer = tiny_trainer(config, network("resnet20"))
    trainer.resume(tmp_path / "last.pt")
    trainer.run()
    assert len(rows(tmp_path / "epochs.csv")) == 2


def test_a_step_that_waits_for_the_device_is_told(tmp_path):
    """A host that looks at a number inside the step cannot be captured."""

    class Looks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network("plain")

        def forward(self, x):
            out = self.net(x)
            self.seen = float(out.sum())
            return out

    trainer = tiny_trainer(tiny_config(tmp_path, **RUN, cuda_graph=True), Looks())
    with pytest.raises(TrainingError, match="cuda_graph: the training step cannot be captured"):
        trainer.run()
