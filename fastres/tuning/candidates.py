"""Which choices are worth a measurement, starting from the one in use."""

from __future__ import annotations

from collections.abc import Iterator

from fastres.kernels import tables
from fastres.kernels.tuned import Choice

# least and largest value of each knob of a config; steps are doublings, of num_stages single ones
KNOBS = {
    "tile": (256, 16384),
    "programs": (32, 8192),
    "BLOCK_M": (16, 256),
    "BLOCK_N": (16, 256),
    "BLOCK_K": (16, 256),
    "BLOCK_R": (16, 256),
    "num_warps": (1, 16),
    "num_stages": (1, 6),
}
_UNKNOWN = (1, 4096)
# knobs that are off or on
_FLAGS = ("stored", "whole_rows")
# knobs that are best changed together: one doubled, the other halved, or both doubled
_OPPOSED = (("BLOCK_M", "BLOCK_N"), ("BLOCK_M", "BLOCK_K"), ("BLOCK_N", "BLOCK_K"))
_ALIGNED = (("BLOCK_M", "num_warps"), ("BLOCK_N", "num_warps"), ("tile", "num_warps"))


def providers(operator: str) -> tuple[str, ...]:
    """Who can run an operator: what the shipped tables name, and cuDNN for any convolution."""
    named = {"triton"} | ({"cudnn"} if operator.startswith("conv") else set())
    for path in tables.CONFIGS.glob("*.json"):
        rows = tables.read(path).rows
        named |= {row["provider"] for row in rows if row["operator"] == operator}
    return tuple(name for name in tables.PROVIDERS if name in named)


def neighbours(operator: str, choice: Choice) -> list[Choice]:
    """The other providers of a choice, then its config with a knob or two moved one step.

    A config is without effect on cuDNN: beside a choice of cuDNN lie Triton's config and its
    neighbours.
    """
    found = [choice._replace(provider=name) for name in providers(operator)]
    found += [Choice("triton", config) for config in _configs(choice.config)]
    return [other for other in unique(found) if not same(other, choice)]


def _configs(config: dict[str, int]) -> Iterator[dict[str, int]]:
    for name, value in config.items():
        if name in _FLAGS:
            yield config | {name: 1 - value}
            continue
        for up in (True, False):
            yield _moved(config, (name, up))
    for one, other in _OPPOSED:
        yield _moved(config, (one, True), (other, False))
        yield _moved(config, (one, False), (other, True))
    for one, other in _ALIGNED:
        for up in (True, False):
            yield _moved(config, (one, up), (other, up))


def _moved(config: dict[str, int], *moves: tuple[str, bool]) -> dict[str, int]:
    """`config` with each knob one step up or down; unchanged where one of them cannot move."""
    moved = dict(config)
    for name, up in moves:
        value = config.get(name)
        if value is None:
            return config
        least, largest = KNOBS.get(name, _UNKNOWN)
        if name == "num_stages":
            value += 1 if up else -1
        elif name in KNOBS or value & (value - 1) == 0:
            value = value * 2 if up else value // 2
        else:
            return config
        if not least <= value <= largest:
            return config
        moved[name] = value
    return moved


def unique(choices: list[Choice]) -> list[Choice]:
    """The choices without repetition, in order."""
    first: dict[tuple, Choice] = {}
    for choice in choices:
        first.setdefault(identity(choice), choice)
    return list(first.values())


def identity(choice: Choice) -> tuple:
    """Equal for two choices that run the same: a config is without effect on cuDNN."""
    if choice.provider == "cudnn":
        return ("cudnn",)
    return (choice.provider, *sorted(choice.config.items()))


def same(one: Choice, other: Choice) -> bool:
    """Whether two choices run the same."""
    return identity(one) == identity(other)


def describe(choice: Choice) -> str:
    """A choice in a few words, such as "triton BLOCK_M 128 num_warps 4"."""
    if choice.provider == "cudnn":
        return "cudnn"
    return " ".join([choice.provider, *(f"{name} {v}" for name, v in choice.config.items())])
