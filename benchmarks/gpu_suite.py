"""Everything worth measuring on a GPU in one command, the most valuable first.

    python benchmarks/gpu_suite.py --out DIR --minutes 9
    python benchmarks/gpu_suite.py --out DIR --smoke      # tiny sizes, on a CPU too

Each stage is a process, most of them a `fastres bench`, and writes DIR/STAGE.json and
DIR/STAGE.log. DIR/suite.json tells how each ended and names what the time did not reach,
DIR/verdict.json whether the speed wanted of ResNet-50 was there, DIR/results.json holds all cases
for `fastres report`, and DIR/tuned the tuned table that was measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
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
from fastres.bench.suite_stages import FULL, SMOKE, Sizes

ROOT = Path(__file__).resolve().parents[1]

TUNED = "tuned"  # folder of the tables that the stage `tune` writes and `resnet50-tuned` uses
TESTS, PROFILE = "tests", "profile"
DECIDING = ("resnet50-bf16", "resnet50-tuned")
GRAPHS = ("eager-cuda-graph", "fastres-cuda-graph")
# name: share of the time at most, seconds at least. The first ones decide whether the speed that
# is wanted is there, and what is in the way; those after them take what time is left.
ORDER = {
    "versions": (0.10, 15),
    "compile": (0.12, 20),
    TESTS: (0.28, 40),
    "resnet50-bf16": (0.30, 60),
    "kernels": (0.20, 40),
    "tune": (0.25, 45),
    "resnet50-tuned": (0.20, 40),
    "resnet50-fp16": (0.28, 40),
    "infer": (0.20, 40),
    PROFILE: (0.12, 25),
    "memory": (0.12, 30),
    "resnet18-bf16": (0.18, 30),
    "peers": (0.25, 45),
    "cifar": (0.25, 40),
    "largest-batch": (0.25, 60),
    "operators": (0.30, 45),
}
SPARE = tuple(ORDER)[tuple(ORDER).index("resnet50-fp16") :]


def bench_arguments(sizes: Sizes, smoke: bool) -> dict[str, Sequence[str]]:
    """What each stage that is a `fastres bench` asks for."""
    deep = ("--model", sizes.deep, "--image-size", str(sizes.image))
    shallow = ("--model", sizes.shallow, "--image-size", str(sizes.image))
    batch = ("--batch", str(sizes.batch))
    rounds = ("--rounds", str(sizes.rounds))
    first, second = sizes.dtypes
    # code generation takes minutes on a CPU
    compiled = "torch.compile-aot-eager" if smoke else "torch.compile"
    steps = ("--optimizer", *batch, *rounds)
    against = ("--implementations", "fastres", *GRAPHS, compiled)
    few = ("--implementations", "fastres")
    cifar = ("resnet20",) if smoke else ("resnet20", "resnet56")
    layers = ("*/layer4",) if smoke else ("*/layer1*", "*/layer3*")
    operators = ("bn_act/layer4",) if smoke else layers
    return {
        "resnet50-bf16": ("train", *deep, *steps, "--dtype", first, *against),
        "resnet50-tuned": ("train", *deep, *steps, "--dtype", first, *few, GRAPHS[1]),
        "resnet50-fp16": ("train", *deep, *steps, "--dtype", second, *against),
        "infer": (
            "infer", *deep, *rounds, "--dtype", first, "--batch", *(() if smoke else ("1",)),
            str(sizes.batch), *(("--implementations", "fastres.optimize") if smoke else ()),
        ),
        "memory": (
            "memory", *deep, "--optimizer", *batch, "--dtype", first, *(few if smoke else ()),
        ),
        "resnet18-bf16": ("train", *shallow, *steps, "--dtype", first, *against),
        "peers": (
            "train", *deep, *steps, "--dtype", first, "--implementations", "fastres",
            "torchvision", *(() if smoke else ("timm", "jax-flax", "torch.compile-max-autotune")),
        ),
        "cifar": (
            "train", "--model", *cifar, "--batch", "4" if smoke else "128", "--optimizer", *rounds,
            "--dtype", *sizes.dtypes[:1], *(() if smoke else ("fp32",)), *against[:-1],
        ),
        "largest-batch": (
            "memory", *deep, "--largest", "--optimizer", "--dtype", first, *few,
            "--batch", "2" if smoke else "64", "--cap", "2" if smoke else "4096",
        ),
        "operators": (
            "op", "--model", *operators, "--batch", "1" if smoke else "128", "--dtype", first,
            "--rounds", str(sizes.operator_rounds), *few,
        ),
    }  # fmt: skip


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


# stages that are no command of fastres
OWN: dict[str, Callable[[suite_stages.Recorder], None]] = {
    "versions": suite_stages.versions,
    "compile": suite_kernels.compile_kernels,
    "kernels": suite_kernels.kernels,
    "tune": tune,
}


def stages(options: argparse.Namespace) -> list[suite.Stage]:
    """The stages in order: versions, GPU tests, then speed."""
    sizes = SMOKE if options.smoke else FULL
    benches = bench_arguments(sizes, options.smoke)

    def own(name: str, seconds: float) -> list[str]:
        arguments = [str(Path(__file__).resolve()), "--out", str(options.out), "--stage", name]
        arguments += ["--seconds", f"{seconds:.1f}", "--device", options.device]
        return suite.python(*arguments, *(["--smoke"] if options.smoke else []))

    def bench(name: str, seconds: float) -> list[str]:
        # what it takes to start is not of its minutes
        minutes = max(seconds - (2 if options.smoke else 10), 2) / 60
        arguments = ["-m", "fastres", "bench", *benches[name], "--device", options.device]
        arguments += ["--minutes", f"{minutes:.3f}", "--fresh"]
        arguments += ["--threads", "1"] if options.smoke else []
        return suite.python(*arguments, "--out", str(options.out / f"{name}.json"))

    def profile(seconds: float) -> list[str]:
        arguments = ["-m", "fastres", "profile", "--model", sizes.deep, "--batch", str(sizes.batch)]
        arguments += ["--image-size", str(sizes.image), "--dtype", sizes.dtypes[0]]
        arguments += ["--device", options.device, "--out", str(options.out / f"{PROFILE}.json")]
        return suite.python(*arguments)

    def tests(seconds: float) -> list[str]:
        arguments = ["-m", "pytest", str(ROOT / "tests" / "gpu"), "-m", "gpu", "-rfEs"]
        arguments += ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
        arguments += ["--tb=short", "--maxfail=25", "-p", "no:cacheprovider", "-v"]
        if importlib.util.find_spec("xdist") and not options.smoke:
            arguments += ["-n", str(min(8, os.cpu_count() or 1))]  # most of it is compilation
        return suite.python(*arguments)

    def command(name: str) -> Callable[[float], list[str]]:
        if name in (TESTS, PROFILE):
            return {TESTS: tests, PROFILE: profile}[name]
        return partial(own if name in OWN else bench, name)

    tuned = {"FASTRES_CONFIGS": str(options.out / TUNED)}
    return [
        suite.Stage(
            name, command(name), share, 4.0 if options.smoke else least, name in SPARE,
            tuned if name in ("tune", "resnet50-tuned") else {},
        )
        for name, (share, least) in ORDER.items()
        if name != PROFILE or PROFILE in cli.COMMANDS
    ]  # fmt: skip


def run_stage(options: argparse.Namespace) -> int:
    """Run one stage of `OWN` in this process; 1 if one of its parts raised."""
    device = torch.device(options.device)
    if device.type == "cuda":
        # for every implementation alike
        torch.backends.cudnn.benchmark = True
    sizes = SMOKE if options.smoke else FULL
    path = options.out / f"{options.stage}.json"
    recorder = suite_stages.Recorder(path, options.seconds, device, sizes)
    recorder.write()
    OWN[options.stage](recorder)
    return 1 if recorder.content["errors"] else 0


def run_all(options: argparse.Namespace) -> int:
    """Run every stage; 1 unless all that was reached went well."""
    sys.stdout.reconfigure(line_buffering=True)
    # what an older run tuned is no start
    shutil.rmtree(options.out / TUNED, ignore_errors=True)
    (options.out / TUNED).mkdir(parents=True, exist_ok=True)
    facts = {
        "smoke": options.smoke,
        "minutes": options.minutes,
        "environment": environment.record(torch.device(options.device)),
    }
    listed = stages(options)
    rows = suite.run(listed, options.out, options.minutes * 60, facts)
    names = [stage.name for stage in listed]
    results.write(options.out / "results.json", suite.collect(options.out, names))
    for row in rows:
        log = options.out / f"{row['stage']}.log"
        if row["stage"] != TESTS and row["status"] == suite.OK and log.exists():
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
    missing = row.get("cases_not_reached", [])
    lines = (row.get("reason") or "").strip().splitlines()
    told = [f"{len(missing)} cases not reached: {'; '.join(missing)}"] if missing else []
    return "; ".join([*told, *(line[:160] for line in lines[-1:])])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, help="for everything (9; with --smoke 8)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any machine")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--stage", choices=list(OWN), help=argparse.SUPPRESS)
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
