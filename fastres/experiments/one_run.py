"""One run of an experiment from wherever it stands to its result file.

As a program (`python -m fastres.experiments.one_run`) it reads {"config", "threads"} as one line
of JSON, writes what happens as lines of JSON, and ends at once when its input closes: an
experiment that was killed leaves nothing behind that still writes into its folder.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastres.bench import results
from fastres.training.config import TrainConfig
from fastres.training.errors import TrainingError
from fastres.training.reporter import Silent

RESULT_FILE = "result.json"
Tell = Callable[[dict[str, Any]], None]


def finished(config: TrainConfig) -> bool:
    """Whether the run's result file is there: it is written after everything else."""
    return (Path(config.out) / RESULT_FILE).is_file()


def config_of(values: dict[str, Any]) -> TrainConfig:
    """The options that `TrainConfig.as_dict` wrote down, by this or another version of it."""
    known = {field.name for field in fields(TrainConfig)}
    return TrainConfig(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
    )


def run_to_end(config: TrainConfig, threads: int, tell: Tell) -> None:
    """Trains, resuming from last.pt where there is one, and writes the run's result file.

    `tell` gets {"note"}, {"iteration", "total", "loss"} and {"epoch": a row of epochs.csv}.
    Raises what `fastres.training` raises.
    """
    import torch

    from fastres.training.distributed import World, choose_device
    from fastres.training.train import build_trainer

    if finished(config):
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        device = choose_device(config.device, 0)
        reporter = _Told(tell)
        trainer = build_trainer(config, World(), device, reporter)
        reporter.trainer = trainer
        last = Path(config.out) / "last.pt"
        if last.exists():
            trainer.resume(last)
        trainer.run()
        tell({"note": "evaluating the training set"})
        write_result(config, trainer, device)
    finally:
        torch.set_num_threads(before)


def write_result(config: TrainConfig, trainer: Any, device: Any) -> None:
    """Evaluates the trained network on its training images and writes the result file.

    Eval mode, without augmentation: the counterpart of the test error. Raises TrainingError when
    the disk is full.
    """
    loss, error = measure(config, trainer.module, unaugmented(trainer.source.train), device)
    content = {
        "model": config.model,
        "shortcut": config.shortcut,
        "seed": config.seed,
        "iterations": trainer.progress.iteration,
        "train_error_eval": error,
        "train_loss_eval": loss,
    }
    try:
        results.write(Path(config.out) / RESULT_FILE, content)
    except OSError as error:
        raise TrainingError(f"cannot write {config.out}: {error.strerror}") from None


def unaugmented(split: Any) -> Any:
    """A split of images in memory, without its random crops and flips."""
    from fastres.training.data.source import ImageTensors

    return ImageTensors(split.images, split.labels, split.mean)


def measure(config: TrainConfig, module: Any, split: Any, device: Any) -> tuple[float, float]:
    """Mean loss and error in % of a network in eval mode on a split, in the run's precision."""
    import torch
    import torch.nn.functional as F

    from fastres.training.engine import DTYPES

    layout = torch.channels_last if config.channels_last else torch.preserve_format
    autocast = torch.autocast(device.type, dtype=DTYPES[config.amp], enabled=config.amp != "none")
    loss, correct = 0.0, 0
    module.eval()
    with torch.no_grad(), autocast:
        for start in range(0, len(split), config.batch_size):
            keys = [(0, i) for i in range(start, min(start + config.batch_size, len(split)))]
            images, labels = split.__getitems__(keys)
            logits = module(images.to(device, memory_format=layout)).float().cpu()
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
    return loss / len(split), 100 - 100 * correct / len(split)


class _Told(Silent):
    """Passes on what a trainer reports."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.trainer: Any = None

    def note(self, text: str) -> None:
        self._tell({"note": text})

    def step(self, done: int, loss: float | None) -> None:
        if loss is not None:
            trainer = self.trainer
            self._tell(
                {"iteration": trainer.progress.iteration, "total": trainer.total, "loss": loss}
            )


def _follow(handle: int) -> None:
    os.read(handle, 1)  # returns when the experiment's process is gone
    os._exit(1)


def main() -> int:
    """The program; its exit codes are those of `fastres train`."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_follow, args=(sys.stdin.fileno(),), daemon=True).start()
    config = config_of(order["config"])

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), flush=True)

    try:
        run_to_end(config, order["threads"], tell)
    except TrainingError as error:
        tell({"error": str(error)})
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
