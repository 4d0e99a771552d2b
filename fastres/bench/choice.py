"""Which implementations a case is measured with, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

from ..training.errors import UsageError
from . import peers, plan
from .peers import (
    COMPILED,
    EAGER,
    EAGER_GRAPH,
    EAGER_NCHW,
    FROZEN,
    FUSED,
    FUSED_GRAPH,
    ONNX_RUNTIME,
    OPTIMIZED,
    REDUCE_OVERHEAD,
    Peer,
)
from .plan import BLOCK, INFER, MEMORY, OPERATOR, Spec

# measured if nothing is asked for; a peer that is not installed has a row that says so
_DEFAULTS = {
    ("cpu", plan.TRAIN): (EAGER, FUSED, EAGER_NCHW, COMPILED),
    ("cpu", INFER): (EAGER, OPTIMIZED, FUSED, EAGER_NCHW, FROZEN, ONNX_RUNTIME),
    ("cpu", MEMORY): (EAGER, FUSED, EAGER_NCHW),
    ("cuda", plan.TRAIN): (
        EAGER, FUSED, EAGER_NCHW, EAGER_GRAPH, FUSED_GRAPH, COMPILED, REDUCE_OVERHEAD,
    ),
    ("cuda", INFER): (
        EAGER, OPTIMIZED, FUSED, EAGER_GRAPH, "fastres.optimize CUDA graph", COMPILED,
        REDUCE_OVERHEAD, ONNX_RUNTIME,
    ),
    ("cuda", MEMORY): (EAGER, FUSED, EAGER_GRAPH, FUSED_GRAPH),
}  # fmt: skip
_PARTS = (EAGER, FUSED, EAGER_NCHW, COMPILED)  # of blocks and operators
# seconds that a case must have for a compiler to be worth its while
_PATIENCE = {"cuda": 60.0, BLOCK: 120.0, OPERATOR: 60.0, INFER: 240.0, "small": 300.0}


def is_ours(name: str) -> bool:
    """Whether an implementation is fastres, or one that the user brought along."""
    return name.startswith(FUSED) or ":" in name


def is_slow(name: str) -> bool:
    """Whether an implementation compiles for long before it runs."""
    return name.startswith("torch.compile") or "jax" in name.lower()


def resolve(name: str) -> Peer:
    """An implementation by its name, or `module:ATTRIBUTE`, a `Peer` of the user's own.

    Raises:
        UsageError: there is none.
    """
    if ":" not in name:
        try:
            return peers.get(name)
        except ValueError as error:
            raise UsageError(str(error)) from None
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"implementations: {name!r} cannot be imported: {error}") from None
    if not isinstance(found, Peer):
        raise UsageError(
            f"implementations: {name!r} must be a fastres.bench.peers.Peer, got a "
            f"{type(found).__name__}"
        )
    return replace(found, name=name)


def slug(name: str) -> str:
    """A name without spaces: "eager channels_last" is also called eager-channels-last."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def names(words: Sequence[str] | None) -> list[str] | None:
    """The names meant by the user's words, the baseline first; None: the defaults.

    Raises:
        UsageError: a word means no implementation.
    """
    if not words:
        return None
    by_slug = {slug(name): name for name in peers.PEERS}
    found = [EAGER]
    for word in words:
        if word == "all":
            found.extend(peers.PEERS)
        elif ":" in word:
            found.append(resolve(word).name)
        elif word in peers.PEERS or slug(word) in by_slug:
            found.append(word if word in peers.PEERS else by_slug[slug(word)])
        else:
            known = ", ".join(by_slug)
            raise UsageError(
                f"implementations must be of {known}, or module:ATTRIBUTE; got {word!r}"
            )
    return list(dict.fromkeys(found))


def defaults(spec: Spec, seconds: float | None) -> tuple[list[str], dict[str, str]]:
    """The implementations for a case that has so many seconds (None: as long as it takes), and
    the reason for each that is left out."""
    place = "cuda" if spec.device.startswith("cuda") else "cpu"
    wanted = list(_PARTS if spec.kind in (BLOCK, OPERATOR) else _DEFAULTS[place, spec.kind])
    chosen, left_out = [], {}
    for name in wanted:
        if name not in peers.PEERS:
            continue
        reason = _too_slow(spec, place, seconds) if is_slow(name) else None
        if reason is None:
            chosen.append(name)
        else:
            left_out[name] = f"{reason}; name it with --implementations to measure it"
    return chosen, left_out


def _too_slow(spec: Spec, place: str, seconds: float | None) -> str | None:
    if place == "cuda":
        needed = _PATIENCE["cuda"]
    elif spec.kind in _PATIENCE:
        needed = _PATIENCE[spec.kind]
    elif spec.model in ("resnet20", "plain20") or spec.model in plan.cases.SMALL:
        needed = _PATIENCE["small"]
    else:
        return f"compiling the training step of {spec.model} takes minutes on a CPU"
    if seconds is None or seconds >= needed:
        return None
    return f"compiling may take {needed:.0f} s, and the case has {seconds:.0f} s"


def listing(spec: Spec) -> list[list[str]]:
    """A row for each implementation: its name, whether it is a default, why it cannot run."""
    workload = spec.workload()
    chosen, left_out = defaults(spec, None)
    rows = []
    for name, peer in peers.PEERS.items():
        reason = peer.unavailable(workload)
        default = "yes" if name in chosen else "no"
        note = reason or left_out.get(name, "")
        rows.append([name, slug(name), default, "no" if reason else "yes", note])
    return rows
