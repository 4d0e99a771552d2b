"""Everything worth measuring on a GPU in one command, the most valuable first.

    python benchmarks/gpu_suite.py --out DIR --minutes 9
    python benchmarks/gpu_suite.py --out DIR --smoke      # tiny sizes, on a CPU too, in 90 s

Each stage is a process and writes DIR/STAGE.json and DIR/STAGE.log; DIR/suite.json tells how each
ended and names what the time did not reach.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from fastres.bench import environment, suite, suite_stages, table

ROOT = Path(__file__).resolve().parents[1]

# name: (what it does, share of the time at most, seconds at least)
MEASURED = {
    "versions": (suite_stages.versions, 0.12, 20),
    "resnet50-bf16": (suite_stages.imagenet("deep", "bf16"), 0.30, 45),
    "resnet50-fp16": (suite_stages.imagenet("deep", "fp16"), 0.28, 40),
    "resnet18-bf16": (suite_stages.imagenet("shallow", "bf16"), 0.18, 30),
    "cifar": (suite_stages.cifar, 0.25, 40),
    "operators": (suite_stages.operators, 0.30, 45),
}
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
        arguments += ["--tb=short", "--maxfail=25", "-p", "no:cacheprovider", "-q"]
        return suite.python(*arguments)

    def minimum(seconds: float) -> float:
        return 4.0 if options.smoke else seconds

    listed = [
        suite.Stage(name, partial(measured, name), share, minimum(least))
        for name, (_, share, least) in MEASURED.items()
    ]
    listed.insert(1, suite.Stage(TESTS, tests, 0.28, minimum(20.0)))
    return listed


def run_stage(options: argparse.Namespace) -> int:
    """Run one stage in this process; 1 if one of its parts raised."""
    device = torch.device(options.device)
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
    return 1 if any(row["status"] in (suite.FAILED, suite.TIMED_OUT) for row in rows) else 0


def _note(row: dict) -> str:
    lines = (row.get("reason") or "").strip().splitlines()
    return lines[-1][:160] if lines else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, help="for everything (9; with --smoke 1.4)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any machine")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--stage", choices=list(MEASURED), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    options.minutes = options.minutes or (1.4 if options.smoke else 9.0)
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
