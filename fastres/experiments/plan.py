"""What an experiment consists of: its networks, seeds and recipe; one folder holds one plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastres.bench import results
from fastres.training.config import TrainConfig
from fastres.training.errors import TrainingError, UsageError

FORMAT = "fastres-experiment"
PLAN_FILE = "experiment.json"
# section 4.2: the residual network of depth 110 starts at a tenth of the rate; its plain one too
_WARMED_UP, _WARMUP = 110, 400


@dataclass(frozen=True)
class Network:
    """A network of an experiment: where its lines are drawn, and how it is made."""

    label: str  # "plain-20"
    depth: int
    panel: str  # the part of the figure that it belongs to
    line: str  # its name within the panel
    model: str  # the registry's name
    shortcut: str | None = None

    @property
    def slug(self) -> str:
        """The label as part of a folder's name."""
        return self.label.lower().replace(" ", "-")


@dataclass(frozen=True)
class Run:
    """One network with one seed: a run of `fastres.training` in a folder of its own."""

    network: Network
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        return f"{self.network.label} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.config.out)


@dataclass(frozen=True)
class Plan:
    """An experiment: every network with every seed, by one recipe.

    `recipe` holds options of `TrainConfig` but for model, shortcut, seed and out; `data_dir` and
    `workers` may differ from one start to the next, all else is decided by the first.
    """

    experiment: str
    title: str
    networks: tuple[Network, ...]
    seeds: tuple[int, ...]
    data: str
    recipe: dict[str, Any]
    threads: int
    out: Path
    free: dict[str, Any] = field(default_factory=dict)  # options that change no number

    def runs(self) -> list[Run]:
        """Seed after seed, so that an early look compares whole rows; deep networks first.

        Raises UsageError naming an option of the recipe that is out of range.
        """
        runs = []
        for seed in self.seeds:
            for network in sorted(self.networks, key=lambda network: -network.depth):
                options = {**self.recipe, **self.free}
                if network.depth >= _WARMED_UP:
                    options.setdefault("warmup_iterations", _WARMUP)
                config = TrainConfig.build(
                    self.data,
                    **options,
                    model=network.model,
                    shortcut=network.shortcut,
                    seed=seed,
                    out=str(self.out / "runs" / f"{network.slug}-seed{seed}"),
                )
                runs.append(Run(network, seed, config))
        return runs

    def options(self) -> dict[str, Any]:
        """What decides the numbers, as JSON holds it."""
        chosen = {
            "experiment": self.experiment,
            "networks": [network.label for network in self.networks],
            "seeds": list(self.seeds),
            "data": self.data,
            "threads": self.threads,
            **self.recipe,
        }
        return json.loads(json.dumps({k: v for k, v in chosen.items() if v is not None}))

    def settle(self, environment: dict[str, Any]) -> bool:
        """Writes the plan into its folder, or holds it against the one that is there.

        Returns whether there was one. Raises UsageError naming each option that differs, and
        TrainingError where the folder cannot be written.
        """
        before = read_plan(self.out)
        if before is None:
            if self.out.is_dir() and any(p.name[0] != "." for p in self.out.iterdir()):
                raise UsageError(
                    f"out must be a new folder or an experiment's, {self.out} holds other files"
                )
            content = {"format": FORMAT, "version": 1, "options": self.options()}
            try:
                results.write(self.out / PLAN_FILE, {**content, "environment": environment})
            except OSError as error:
                raise TrainingError(f"cannot write {self.out}: {error.strerror}") from None
            return False
        differing = differences(before, self.options())
        if differing:
            raise UsageError(
                f"{self.out} was started with other options: {'; '.join(differing)}; "
                "give the same ones, or another --out"
            )
        return True


def read_plan(out: Path) -> dict[str, Any] | None:
    """The options an experiment's folder was started with; None where there is no experiment.

    Raises UsageError for a file of another kind.
    """
    path = out / PLAN_FILE
    try:
        content = results.read(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    if not content:
        return None
    if content.get("format") != FORMAT or "options" not in content:
        raise UsageError(f"{path} is not an experiment of fastres")
    return content["options"]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each option that differs, in words."""
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name} was {_words(before.get(name))}, now {_words(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "not given" if value is None else str(value)


def depth_networks(depths: Sequence[int]) -> tuple[Network, ...]:
    """Plain and residual networks of every depth, for the degradation experiment."""
    plain = [Network(f"plain-{d}", d, "plain", f"plain-{d}", f"plain{d}") for d in depths]
    residual = [
        Network(f"ResNet-{d}", d, "residual", f"ResNet-{d}", f"resnet{d}", "A") for d in depths
    ]
    return (*plain, *residual)


def shortcut_networks(depths: Sequence[int]) -> tuple[Network, ...]:
    """ResNets of every depth with shortcuts A, B and C."""
    return tuple(
        Network(f"ResNet-{d} {s}", d, f"ResNet-{d}", f"shortcut {s}", f"resnet{d}", s)
        for d in depths
        for s in ("A", "B", "C")
    )
