"""Everything worth measuring on a GPU in one command, the most valuable first.

    python benchmarks/gpu_suite.py --out DIR --minutes 9
    python benchmarks/gpu_suite.py --out DIR --smoke      # tiny sizes, on a CPU too

Each stage is a process and writes DIR/STAGE.json and DIR/STAGE.log; DIR/suite.json tells how each
ended and names what the time did not reach, DIR/verdict.json whether the speed wanted of ResNet-50
was there. DIR/tuned holds the tuned table that was measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import torch

from fastres import cli
from fastres.bench import (
    environment,
    results,
    suite,
    suite_kernels,
    suite_stages,
    suite_verdict,
    table,
)

ROOT = Path(__file__).resolve().parents[1]

TUNED = "tuned"  # folder of the tables that the stage `tune` writes and `resnet50-tuned` uses


def tune(recorder: suite_stages.Recorder) -> None:
    """Stage: `fastres tune` for the deep network, the operators with the largest gaps first.

    Without a GPU it only lists what would be measured.
    """
    sizes, out = recorder.sizes, recorder.path.parent
    measured = results.read(out / "kernels.json").get("parts", {})
    arguments = ["tune", "--model", sizes.deep, "--batch", str(sizes.batch)]
    arguments += ["--image-size", str(sizes.image), "--dtype", sizes.dtypes[0]]
    if suite_kernels.worst(measured):
        arguments += ["--operators", *suite_kernels.worst(measured)]
    if recorder.device.type == "cuda":
        arguments += ["--seconds", f"{max(recorder.left - 10, 5):.0f}"]
    else:
        arguments.append("--dry-run")

    def run() -> None:
        code = cli.main(arguments)
        if code != 0:
            raise RuntimeError(f"fastres {' '.join(arguments)} ended with {code}")
        tables = sorted((out / TUNED).glob("*.json"))
        recorder.put("tables", {path.name: results.read(path) for path in tables})

    recorder.attempt("tune", run)


# name: (what it does, share of the time at most, seconds at least). The first ones decide whether
# the speed that is wanted is there, and what is in the way; the last ones take what time is left.
MEASURED = {
    "versions": (suite_stages.versions, 0.10, 15),
    "compile": (suite_kernels.compile_kernels, 0.12, 20),
    "resnet50-bf16": (suite_stages.imagenet("deep", "bf16"), 0.30, 60),
    "kernels": (suite_kernels.kernels, 0.20, 40),
    "tune": (tune, 0.25, 45),
    "resnet50-tuned": (suite_stages.imagenet("deep", "bf16", 0.0), 0.20, 40),
    "resnet50-fp16": (suite_stages.imagenet("deep", "fp16"), 0.28, 40),
    "resnet18-bf16": (suite_stages.imagenet("shallow", "bf16"), 0.18, 30),
    "cifar": (suite_stages.cifar, 0.25, 40),
    "operators": (suite_stages.operators, 0.30, 45),
}
SPARE = ("resnet50-fp16", "resnet18-bf16", "cifar", "operators")
DECIDING = ("resnet50-bf16", "resnet50-tuned")
TESTS = "tests"


def stages(options: argparse.Namespace) -> list[suite.Stage]:
    """The stages in order: versions, GPU tests, then speed."""

    def measured(name: str, seconds: float) -> list[str]:
        arguments = [str(Path(__file__).resolve()), "--out", str(options.out), "--stage", name]
        arguments += ["--seconds", f"{seconds:.1f}", "--device", options.device]
        return suite.python(*arguments, *(["--smoke"] if options.smoke else []))

    def tests(seconds: float) -> list[str]:
        arguments = ["-m", "pytest", str(ROOT / "tests" / "gpu"), "-m", "gpu", "-rfEs"]
        arguments += ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
        arguments += ["--tb=short", "--maxfail=25", "-p", "no:cacheprovider", "-v"]
        if importlib.util.find_spec("xdist") and not options.smoke:
            arguments += ["-n", str(min(8, os.cpu_count() or 1))]  # most of it is compilation
        return suite.python(*arguments)

    def minimum(seconds: float) -> float:
        return 4.0 if options.smoke else seconds

    listed = [
        suite.Stage(name, partial(measured, name), share, minimum(least), name in SPARE)
        for name, (_, share, least) in MEASURED.items()
    ]
    listed.insert(2, suite.Stage(TESTS, tests, 0.28, minimum(40.0)))
    return listed


def run_stage(options: argparse.Namespace) -> int:
    """Run one stage in this process; 1 if one of its parts raised."""
    device = torch.device(options.device)
    if options.stage in ("tune", "resnet50-tuned"):
        folder = options.out / TUNED
        if options.stage == "tune":  # what an older run left is no start
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["FASTRES_CONFIGS"] = str(folder)
    sizes = suite_stages.SMOKE if options.smoke else suite_stages.FULL
    if device.type == "cuda":
        # for every implementation alike
        torch.backends.cudnn.benchmark = True
    recorder = suite_stages.Recorder(
        options.out / f"{options.stage}.json", options.seconds, device, sizes
    )
    recorder.write()
    MEASURED[options.stage][0](recorder)
    return 1 if recorder.content["errors"] else 0


def run_all(options: argparse.Namespace) -> int:
    """Run every stage; 1 unless all that was reached went well."""
    sys.stdout.reconfigure(line_buffering=True)
    device = torch.device(options.device)
    facts = {
        "smoke": options.smoke,
        "minutes": options.minutes,
        "environment": environment.record(device),
    }
    rows = suite.run(stages(options), options.out, options.minutes * 60, facts)
    for row in rows:
        log = options.out / f"{row['stage']}.log"
        if row["stage"] in MEASURED and row["status"] == suite.OK and log.exists():
            sys.stdout.write(log.read_text(encoding="utf-8", errors="replace"))
    cells = [
        [row["stage"], row["status"], f"{row.get('wall_seconds', 0):.0f} s", _note(row)]
        for row in rows
    ]
    table.print_table(f"results in {options.out}", ["stage", "status", "took", "note"], cells)
    if not options.smoke:
        found = suite_verdict.verdict(options.out, DECIDING)
        results.write(options.out / "verdict.json", found)
        print("\n".join(suite_verdict.lines(found)))
    return 1 if any(row["status"] in (suite.FAILED, suite.TIMED_OUT) for row in rows) else 0


def _note(row: dict) -> str:
    lines = (row.get("reason") or "").strip().splitlines()
    return lines[-1][:160] if lines else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, help="for everything (9; with --smoke 8)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any machine")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--stage", choices=list(MEASURED), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    options.minutes = options.minutes or (8.0 if options.smoke else 9.0)
    available = torch.cuda.is_available()
    options.device = options.device or ("cuda" if available else "cpu")
    if options.device.startswith("cuda") and not available:
        parser.error("--device cuda: no CUDA device is available")
    if options.stage:
        return run_stage(options)
    if options.device == "cpu" and not options.smoke:
        parser.error("the full suite needs a GPU; --smoke runs on a CPU")
    return run_all(options)


if __name__ == "__main__":
    raise SystemExit(main())
