"""`fastres bench`: networks, blocks and operators under every implementation, case by case."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.errors import UsageError

if TYPE_CHECKING:
    from .plan import Spec
    from .store import Store

_KINDS = {
    "train": "forward, loss, backward, and with --optimizer SGD",
    "infer": "forward in eval mode",
    "block": "forward and backward of a residual block",
    "op": "forward and backward of a fused operator",
    "memory": "peak memory of a training step",
}
_DTYPES = ("fp32", "bf16", "fp16")
_OUT = Path("out/bench")
_DESCRIPTION = (
    "Measures implementations in interleaved rounds, each case in a fresh process. One whose "
    "outputs or gradients are wrong at that shape gets no speed. An interrupted sweep goes on when "
    "the same command is given again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastres bench`."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "kind", nargs="?", choices=list(_KINDS), metavar="KIND",
        help="; ".join(f"{name}: {what}" for name, what in _KINDS.items()),
    )  # fmt: skip
    what = parser.add_argument_group("what is measured; every combination is a case")
    what.add_argument(
        "--model", nargs="+", metavar="NAME",
        help="networks (resnet50), depths such as 18..152 or 20..1202, blocks (bottleneck/layer1), "
        "operators (bn_act/layer1), or patterns",
    )  # fmt: skip
    what.add_argument(
        "--batch", nargs="+", metavar="N",
        help="images a step: numbers, or a range that doubles: 1..512 (on a CPU 16, on a GPU 256; "
        "infer also 1)",
    )  # fmt: skip
    what.add_argument("--dtype", nargs="+", choices=_DTYPES, help="(fp32; on a GPU bf16)")
    what.add_argument(
        "--image-size", nargs="+", metavar="PIXELS", help="(224, or 32 for a CIFAR network)"
    )
    what.add_argument(
        "--optimizer", action=argparse.BooleanOptionalAction, default=None,
        help="SGD is part of a training step (on a GPU it is)",
    )  # fmt: skip
    what.add_argument(
        "--implementations", nargs="+", metavar="NAME",
        help="names as --list has them, all, or module:ATTRIBUTE of a Peer of your own; eager "
        "channels_last is always there, to compare with",
    )  # fmt: skip
    what.add_argument(
        "--largest", action="store_true",
        help="with memory: search the largest batch that fits, from --batch up (1; on a GPU 64)",
    )  # fmt: skip
    what.add_argument("--cap", type=int, default=512, help="no larger batch is tried (512)")
    what.add_argument("--list", action="store_true", help="list implementations, and end")
    how = parser.add_argument_group("how")
    how.add_argument("--minutes", type=float, help="for everything (as long as it takes)")
    how.add_argument(
        "--rounds", type=int, help="interleaved rounds, at most (25; with --minutes 60)"
    )
    how.add_argument("--threads", type=int, help="of a CPU measurement (torch's)")
    how.add_argument("--device", help="cuda where there is one, else cpu")
    how.add_argument(
        "--keep-memory", action="store_true",
        help="malloc is told never to give memory back: what remains of a difference without page "
        "faults (Linux)",
    )  # fmt: skip
    how.add_argument(
        "--floor", action=argparse.BooleanOptionalAction, default=None,
        help="add the time floor of the byte-and-flop model (on a GPU; on a CPU it is an estimate)",
    )  # fmt: skip
    where = parser.add_argument_group("results")
    where.add_argument(
        "--out", type=Path, metavar="FILE.json|DIR",
        help=f"where JSON and CSV go ({_OUT}/, named after what is measured)",
    )  # fmt: skip
    where.add_argument("--fresh", action="store_true", help="replace what --out holds")
    where.add_argument("--retry", action="store_true", help="measure failed cases again")
    where.add_argument(
        "--any-commit", action="store_true", help="go on with a file begun at another commit"
    )
    gate = parser.add_argument_group("regression gate")
    gate.add_argument(
        "--compare", nargs="+", type=Path, metavar="FILE",
        help="OLD.json NEW.json: compare two files. OLD.json with KIND: measure, then compare. "
        "OLD.json alone: repeat its sweep, then compare. Exit code 1 where fastres became slower",
    )  # fmt: skip
    gate.add_argument(
        "--threshold", type=float, default=0.05,
        help="slower by more than this, for certain, is a regression (0.05)",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Measure, print and compare; 1 where an implementation of fastres has no speed or lost some.

    Raises:
        UsageError: an option does not fit, or a file holds something else.
    """
    files = args.compare or []
    if args.threshold <= 0:
        raise UsageError(f"threshold must be above 0, got {args.threshold:g}")
    if len(files) > 2 or any(str(file) in _KINDS for file in files):
        raise UsageError(
            f"compare takes OLD.json and maybe NEW.json, got {' '.join(map(str, files))}; KIND "
            "comes before the options"
        )
    if len(files) == 2:
        if args.kind is not None:
            raise UsageError("compare of two files measures nothing: leave out KIND")
        from . import screen

        return screen.files(*files, args.threshold)
    if files:
        from . import gate

        old = gate.load(files[0])
        if args.kind is None:
            _repeat(args, files[0])
    if args.kind is None:
        raise UsageError(f"say what to measure: {', '.join(_KINDS)}; or --compare")
    settled = _Settled(args)
    if args.list:
        return settled.list()
    store = settled.store(old_path=files[0] if files else None)
    code = settled.measure(store)
    if files:
        from . import screen

        return max(code, screen.comparison(old, store.cases, args.threshold))
    return code


def _repeat(args: argparse.Namespace, path: Path) -> None:
    """Give `args` the options of the sweep in a file."""
    from . import results

    told = results.read(path).get("sweep")
    if not isinstance(told, dict):
        raise UsageError(
            f"compare: {path} does not say how it was measured; name NEW.json, or what to measure"
        )
    options = told["options"]
    for option in ("kind", "model", "dtype", "rounds", "threads", "device", "optimizer", "floor",
                   "keep_memory", "implementations"):  # fmt: skip
        setattr(args, option, options[option])
    args.batch = [str(batch) for batch in options["batch"]]
    sizes = options["image_size"]
    args.image_size = None if sizes is None else [str(size) for size in sizes]


class _Settled:
    """The options with their defaults, as the machine at hand has them.

    Raises:
        UsageError: an option does not fit.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from . import choice, environment, plan
        from .case import keep_memory_reason
        from .sweep import Options

        self.args = args
        for option in ("minutes", "rounds", "threads"):
            value = getattr(args, option)
            if value is not None and value <= 0:
                raise UsageError(f"{option} must be above 0, got {value:g}")
        rounds = args.rounds or (25 if args.minutes is None else 60)
        available = torch.cuda.is_available()
        self.device = args.device or ("cuda" if available else "cpu")
        on_gpu = self.device.startswith("cuda")
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise UsageError(f"device must be cpu or cuda, got {self.device!r}")
        if on_gpu and not available:
            raise UsageError("device: there is no CUDA device here")
        if args.keep_memory and keep_memory_reason() is not None:
            raise UsageError(f"keep_memory {keep_memory_reason()}")
        threads = args.threads or torch.get_num_threads()
        torch.set_num_threads(threads)
        batches = args.batch
        if args.largest and (args.kind != "memory" or len(batches or ()) > 1):
            raise UsageError("largest goes with memory, and begins at one batch")
        if args.cap < 1:
            raise UsageError(f"cap must be at least 1, got {args.cap}")
        if args.largest and not batches:
            batches = ["64" if on_gpu else "1"]
        elif not batches:
            many = "256" if on_gpu else "16"
            batches = ["1", many] if args.kind == "infer" else [many]
        sizes = plan.numbers("image_size", args.image_size, 7) if args.image_size else None
        batch = plan.numbers("batch", batches)
        models = plan.model_names(args.kind, args.model)
        dtypes = list(dict.fromkeys(args.dtype or (["bf16"] if on_gpu else ["fp32"])))
        optimizer = on_gpu if args.optimizer is None else args.optimizer
        self.specs: list[Spec] = plan.specs(
            args.kind, models, batch, dtypes, sizes, device=self.device, optimizer=optimizer,
            keep_memory=args.keep_memory,
        )  # fmt: skip
        names = choice.names(args.implementations)
        with_floor = on_gpu if args.floor is None else args.floor
        seconds = None if args.minutes is None else 60 * args.minutes
        self.options = Options(names, rounds, threads, seconds, with_floor)
        self.identity: dict[str, Any] = {
            "kind": args.kind, "model": models, "batch": batch, "dtype": dtypes,
            "image_size": sizes, "implementations": names, "rounds": rounds,
            "threads": threads, "device": self.device,
            "machine": torch.cuda.get_device_name(self.device) if on_gpu
            else environment.cpu_model(),
            "optimizer": optimizer, "keep_memory": args.keep_memory, "floor": with_floor,
            "torch": torch.__version__, "commit": environment.commit(),
        }  # fmt: skip
        if args.largest:
            self.identity |= {"largest": True, "cap": args.cap}

    def list(self) -> int:
        """Print the implementations for the first case."""
        from . import choice
        from .table import print_table

        header = ["implementation", "or", "default", "runs here", "why not"]
        rows = choice.listing(self.specs[0])
        print_table(f"implementations of {self.specs[0].name}", header, rows)
        return 0

    def store(self, old_path: Path | None) -> Store:
        """The results file, with what it holds; never that of `old_path`."""
        from .store import Store, default_name

        out = self.args.out or _OUT
        path = out if out.suffix == ".json" else out / default_name(self.identity)
        if old_path is not None and path.resolve() == old_path.resolve():
            if self.args.out is not None and out.suffix == ".json":
                raise UsageError(f"out must not be {path}, which is compared with")
            path = path.with_name(f"{path.stem}-again.json")
        planned = [] if self.args.largest else [spec.name for spec in self.specs]
        return Store(path, self.identity, planned)

    def measure(self, store: Store) -> int:
        """Measure what is missing and print all of it; 1 where one of ours has no speed."""
        with store.locked():
            known = not self.args.fresh and store.load(any_commit=self.args.any_commit)
            if self.args.retry:
                store.forget_failed()
            if known and self.args.compare and not store.missing():
                # of an earlier comparison: what is compared is measured now
                store.cases, known = {}, False
            if self.args.largest:
                self._search(store)
            missing = store.missing()
            if known and not self.args.largest:
                _say(
                    f"{store.path} holds {len(self.specs) - len(missing)} of {len(self.specs)} "
                    f"cases; {'the others are' if missing else 'nothing is'} measured now"
                    f"{'' if missing else ', --fresh measures again'}"
                )
                if str(self.identity["commit"]).endswith("+changes"):
                    _say("files differ from the commit: that they are those of before is assumed")
            if missing:
                self._sweep(store)
        from . import screen

        return screen.results(store)

    def _search(self, store: Store) -> None:
        from . import choice, largest_sweep
        from .progress import Progress

        names = self.options.names or choice.defaults(self.specs[0], None)[0]
        foreign = [name for name in names if ":" in name]
        if foreign:
            raise UsageError(f"largest is not searched for {', '.join(foreign)}")
        with Progress(len(self.specs)) as progress:
            largest_sweep.run(self.specs, names, self.args.cap, self.options, store, progress)

    def _sweep(self, store: Store) -> None:
        import torch

        from . import environment, isolated
        from .progress import Progress
        from .sweep import Sweep

        if self.device == "cpu":
            # builds the C++ kernels, before anything is timed
            environment.record(torch.device("cpu"))

        def facts() -> dict[str, Any]:
            if self.device == "cpu":
                return environment.record(torch.device("cpu"))
            # a CUDA context of this process would take memory from those that measure
            return isolated.call(_facts, self.device)

        with Progress(len(self.specs)) as progress:
            Sweep(self.specs, self.options, store, facts, progress).run()


def _facts(report: Any, device: str) -> dict[str, Any]:
    import torch

    from . import environment

    return environment.record(torch.device(device))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
