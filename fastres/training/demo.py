"""`fastres demo`: a fused ResNet-20 learns handwritten digits, and its step is timed."""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastres.training.config import TrainConfig
from fastres.training.errors import TrainingError, UsageError

if TYPE_CHECKING:
    import torch

    from fastres.training.speed import StepTimes

TARGET = 97.0  # percent of the test images; a full demo below it has failed
EPOCHS = 20
_MODEL = "resnet20"
_ROUNDS = 20
_RUN_FILES = ("last.pt", "best.pt", "epochs.csv", "steps.csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the results go, and a shorter or other run."""
    parser.add_argument("--out", default="out/demo", help="folder of the results (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=_ROUNDS, help="timed steps of each network (%(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    """Runs the demo. Raises TrainingError if a full run ends under TARGET."""
    if args.rounds < 2:
        raise UsageError(f"rounds must be at least 2, got {args.rounds}")
    started = time.perf_counter()
    config = _configure(args.epochs, args.out, args.device)

    from fastres.training.distributed import World, choose_device
    from fastres.training.reporter import make_reporter, print_table
    from fastres.training.speed import measure_step
    from fastres.training.train import build_trainer

    device = choose_device(args.device, 0)
    out = Path(args.out)
    for name in _RUN_FILES:  # the demo starts anew every time
        (out / name).unlink(missing_ok=True)
    trainer = build_trainer(config, World(), device, make_reporter(True))
    rows = trainer.run().rows
    trained = time.perf_counter() - started
    print_table(
        "ResNet-20 with fused operators on handwritten digits",
        ("epoch", "lr", "train loss", "train %", "test loss", "test %", "seconds"),
        [_cells(row) for row in rows],
    )
    print("timing a training step, fused and plain PyTorch in turns", flush=True)
    times = measure_step(_MODEL, config.batch_size, 32, device, args.rounds)
    curve = out / "curve.png"
    _draw(rows, curve)
    _write_results(out / "results.json", config, device, rows, times, trained)
    accuracy = rows[-1]["top1"]
    _print_findings(accuracy, len(trainer.source.held_out), trained, times, config, device)
    print(f"curve: {curve}  numbers: {out / 'results.json'}")
    if args.epochs >= EPOCHS and accuracy < TARGET:
        raise TrainingError(f"expected at least {TARGET}% on the test images, got {accuracy:.2f}%")
    return 0


def _configure(epochs: int, out: str, device: str) -> TrainConfig:
    """The rate falls after 60% and 85% of the epochs; the first steps warm up at a tenth of it."""
    milestones = sorted({max(1, epochs * 3 // 5), max(1, epochs * 17 // 20)})
    return TrainConfig.build(
        "digits",
        model=_MODEL,
        epochs=epochs,
        milestones=tuple(milestones),
        warmup_iterations=20,
        out=out,
        device=device,
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["epoch"]),
        f"{row['lr']:g}",
        f"{row['train_loss']:.4f}",
        f"{row['train_top1']:.2f}",
        f"{row['loss']:.4f}",
        f"{row['top1']:.2f}",
        f"{row['seconds']:.1f}",
    )


def _print_findings(
    accuracy: float,
    images: int,
    seconds: float,
    times: StepTimes,
    config: TrainConfig,
    device: torch.device,
) -> None:
    from fastres.training.speed import spread

    print(
        f"\nThe network trained with fastres's fused operators names {accuracy:.2f}% of {images} "
        f"test digits it never saw, after {seconds:.0f} s on {_describe(device)}."
    )
    print(f"One training step, batch {config.batch_size}, fp32, channels_last:")
    for label, values in (("fused", times.fused), ("plain PyTorch", times.reference)):
        low, middle, high = (1000 * value for value in spread(values))
        print(
            f"  {label:14s}{middle:8.1f} ms   (half of {len(values)} steps in "
            f"{low:.1f} to {high:.1f} ms)"
        )
    ratio = times.speedup
    verdict = f"{ratio:.2f}x as fast" if ratio >= 1 else f"slower here: {ratio:.2f}x"
    print(f"  fused is {verdict} (medians)")


def _describe(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            f"the curve needs matplotlib: pip install 'fastres[plots]' ({error})"
        ) from None
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, errors = figure.subplots(1, 2)
    losses.plot(epochs, [row["train_loss"] for row in rows], linewidth=1, label="train")
    losses.plot(epochs, [row["loss"] for row in rows], linewidth=2, label="test")
    losses.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    errors.plot(epochs, [100 - row["train_top1"] for row in rows], linewidth=1, label="train")
    errors.plot(epochs, [100 - row["top1"] for row in rows], linewidth=2, label="test")
    errors.axhline(100 - TARGET, color="grey", linestyle=":", linewidth=1)
    errors.set(xlabel="epoch", ylabel="error (%)", ylim=(0, None))
    for axes in (losses, errors):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"ResNet-20, fused operators, digits: {rows[-1]['top1']:.2f}% on the test images"
    )
    figure.savefig(path, dpi=150)


def _write_results(
    path: Path,
    config: TrainConfig,
    device: torch.device,
    rows: list[dict[str, Any]],
    times: StepTimes,
    trained: float,
) -> None:
    import torch

    from fastres.training.speed import spread
    from fastres.version import __version__

    step = {
        name: {"quartiles_s": spread(values), "times_s": values}
        for name, values in (("fused", times.fused), ("reference", times.reference))
    }
    results = {
        "versions": {
            "fastres": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": _describe(device),
        "config": config.as_dict(),
        "epochs": rows,
        "training_s": trained,
        "step": {**step, "speedup": times.speedup},
    }
    path.write_text(json.dumps(results, indent=1) + "\n")
