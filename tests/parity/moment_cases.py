"""The operators between a moment form's passes: random arguments, and what they must give in fp64.

z [M, K] and g [M, N] are random rows, y = z W^T; the moments and the product are sums over them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from parity.block_cases import Draw
from parity.oracle import ATOL, assert_parity
from torch import Tensor

from fastres.backends import reference

EPS = 1e-5
NAMES = ("moment_statistics", "moment_gradients", "moment_batch_gradients")
RESULTS = {
    "moment_statistics": ("offset", "covariance", "mean", "var", "invstd", "scale", "shift"),
    "moment_gradients": ("sum_gy", "gain", "dmatrix", "dweight"),
    "moment_batch_gradients": ("mixing", "constant", "dmatrix"),
}
KINDS = {
    "one rank": {},
    "ranks": {"ranks": True},
    "frozen": {"frozen": True},
    "no weight and bias": {"affine": False},
    "no rows": {},
    "no rows here": {"ranks": True},
}
# rows, inner and outer channels: below, at and above the tiles, even and odd
SIZES = [(2, 1, 3), (50, 3, 1), (40, 17, 65), (90, 65, 17), (70, 64, 128), (300, 128, 256)]
# the places of the arguments that hold values
_VALUES = {
    "moment_statistics": (1, 2, 3, 4),
    "moment_gradients": (1, 2, 3, 4, 6, 7, 8, 9),
    "moment_batch_gradients": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
}


class Moments(NamedTuple):
    """Arguments by operator, and the results that they must have, in fp64.

    With frozen statistics there are no `moment_batch_gradients`.
    """

    arguments: dict[str, list]
    expected: dict[str, dict[str, Tensor]]


def moments_and_weights(
    rows: int, k: int, width: int, dtype: torch.dtype, *, frozen: bool = False,
    ranks: bool = False, affine: bool = True, at: float = 0.5, seed: int = 0,
) -> Moments:  # fmt: skip
    """M = `rows`; `ranks`: the statistics are of more rows than these; `at`: where z's mean is."""
    draw = Draw(dtype, seed)
    z = draw.normal(rows, k, shift=at).double()
    g = draw.normal(rows, width).double()
    pivot = draw.normal(k, scale=0.2, shift=at)
    weight = draw.weight(width, k, 1, 1).to(dtype).float()
    gamma, beta = (draw.normal(width, shift=1.0), draw.normal(width)) if affine else (None, None)
    d = z - pivot.double()
    s, gram, product, sum_g = d.sum(0), d.t() @ d, d.t() @ g, g.sum(0)
    matrix, p = weight.double().flatten(1), pivot.double()
    s, gram, product, sum_g = (value.float() for value in (s, gram, product, sum_g))

    offset, covariance = s.double() / max(rows, 1), gram.double() / max(rows, 1)
    covariance = covariance - torch.outer(offset, offset)
    mean = matrix @ (p + offset) if rows else torch.zeros(width).double()
    var = torch.einsum("nk,kj,nj->n", matrix, covariance, matrix).clamp_min(0)
    invstd = (var + EPS).rsqrt()
    one, zero = torch.ones(width), torch.zeros(width)
    gamma_or_one = (one if gamma is None else gamma).double()
    scale = invstd * gamma_or_one
    lacking = matrix @ offset if dtype == torch.float32 else mean
    shift = (zero if beta is None else beta).double() - lacking * scale
    statistics = dict(
        zip(
            RESULTS["moment_statistics"],
            (offset, covariance, mean, var, invstd, scale, shift),
            strict=True,
        )
    )

    # the backward pass is given what a forward found: statistics in fp32, here of any other batch
    given_mean, given_invstd = mean.float(), draw.normal(width, scale=0.2, shift=1.0).abs() + 0.3
    if frozen or ranks:
        given_mean = given_mean + draw.normal(width, scale=0.3)
    m, cov = (None, None) if frozen else (offset.float(), covariance.float())
    given_shift = (mean - given_mean.double()).float() if ranks else None
    if frozen:
        level = matrix @ p - given_mean.double()
    else:
        level = -matrix @ m.double() + (0 if given_shift is None else given_shift.double())
    sum_gy = (matrix * product.double().t()).sum(1) + level * sum_g.double()
    scale = given_invstd.double() * gamma_or_one
    dmatrix = product.double().t() * scale[:, None] + torch.outer(scale * sum_g.double(), p)
    gain = matrix * scale[:, None]
    y = torch.zeros(0, dtype=dtype)
    arguments = {
        "moment_statistics": [y, weight, s, gram, pivot, gamma, beta, rows, EPS],
        "moment_gradients": [
            y, weight, product, sum_g, gamma, given_mean, given_invstd, pivot, m, given_shift,
        ],
    }  # fmt: skip
    expected = {
        "moment_statistics": statistics,
        "moment_gradients": {
            "sum_gy": sum_gy, "gain": gain, "dmatrix": dmatrix,
            "dweight": given_invstd.double() * sum_gy,
        },
    }  # fmt: skip
    if not frozen:
        everyone = [sum_g, sum_gy.float()]
        if ranks:
            everyone = [value + draw.normal(width) for value in everyone]
        count = rows + 7 if ranks else rows
        arguments["moment_batch_gradients"] = [
            y, weight, gain.to(dtype), dmatrix.float(), *everyone, gamma, given_invstd, pivot, m,
            cov, given_shift, torch.tensor(float(count)) if ranks else None, rows,
        ]  # fmt: skip
        expected["moment_batch_gradients"] = _batch_gradients(
            matrix, gain, dmatrix, *everyone, scale, given_invstd.double(), p, m.double(),
            cov.double(), given_shift, max(count, 1), rows, dtype,
        )  # fmt: skip
    return Moments(arguments, expected)


def _batch_gradients(
    matrix, gain, dmatrix, all_g, all_gy, scale, invstd, p, m, covariance, shift, count, rows, dtype
) -> dict[str, Tensor]:
    """The formulas of docs/engine.md in fp64; nothing is rounded on the way."""
    shift = torch.zeros_like(scale) if shift is None else shift.double()
    mean_g = all_g.double() / count
    slope = -scale * invstd**2 * all_gy.double() / count
    level = shift * slope - scale * mean_g
    tilted = matrix * slope[:, None]
    mixing = matrix.t() @ tilted
    operand = m if dtype == torch.float32 else p + m
    return {
        "mixing": mixing,
        "constant": tilted.t() @ shift - gain.t() @ mean_g - mixing @ operand,
        "dmatrix": dmatrix + rows * (tilted @ covariance + torch.outer(level, p + m)),
    }


def results(module, name: str, arguments: list) -> dict[str, Tensor]:
    """The named results of an operator of a backend."""
    found = getattr(module, name)(*arguments)
    found = found if isinstance(found, tuple | list) else (found,)
    return dict(zip(RESULTS[name], found, strict=True))


def case(size: tuple[int, int, int], dtype: torch.dtype, kind: str = "one rank") -> Moments:
    """One of SIZES and KINDS."""
    rows, k, width = size
    return moments_and_weights(
        0 if kind.startswith("no rows") else rows, k, width, dtype, **KINDS[kind]
    )


def check(module, found: Moments, name: str, dtype: torch.dtype) -> None:
    """Parity of an operator, and outputs as the reference's in size, dtype and strides."""
    ours = results(module, name, found.arguments[name])
    same = results(reference, name, found.arguments[name])
    for key, value in ours.items():
        assert (value.shape, value.dtype) == (same[key].shape, same[key].dtype), key
        assert value.is_contiguous(), key
    assert_parity(ours, same, found.expected[name], ATOL[dtype])


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Bitwise."""
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def strided(arguments: list) -> list:
    """The same values, no vector or matrix of which lies as it did."""
    changed = list(arguments)
    for index, value in enumerate(arguments):
        if isinstance(value, Tensor) and value.dim() == 1 and value.numel():
            changed[index] = torch.stack([value, value], 1)[:, 0]
        elif isinstance(value, Tensor) and value.dim() in (2, 4):
            changed[index] = value.transpose(0, 1).contiguous().transpose(0, 1)
    return changed


def check_a_large_mean(module) -> None:
    """Variance and shift do not cancel, though the mean of y is 1e4 times its spread."""
    found = moments_and_weights(80, 24, 40, torch.float32, at=1e4)
    ours = results(module, "moment_statistics", found.arguments["moment_statistics"])
    expected = found.expected["moment_statistics"]
    assert expected["mean"].abs().max() > 1e3
    for key in ("offset", "covariance", "var", "invstd", "scale", "shift"):
        torch.testing.assert_close(ours[key].double(), expected[key], rtol=2e-5, atol=2e-5)


def check_the_mixing(module, dtype: torch.dtype) -> None:
    """Symmetric, and the constant is made of what was rounded."""
    found = case((70, 65, 130), dtype)
    arguments = found.arguments["moment_batch_gradients"]
    ours = results(module, "moment_batch_gradients", arguments)
    assert torch.equal(ours["mixing"], ours["mixing"].t())
    pivot, offset, rows = arguments[8], arguments[9], arguments[-1]
    operand = offset if dtype == torch.float32 else pivot + offset
    constant = -arguments[2].double().t() @ (arguments[4].double() / rows)
    constant = constant - ours["mixing"].double() @ operand.double()
    error = (ours["constant"].double() - constant).abs().max()
    assert error <= 2e-6 * constant.abs().max()
    if dtype != torch.float32:  # of the matrices before rounding it would be another one
        unrounded = found.expected["moment_batch_gradients"]["constant"]
        assert error < 0.1 * (unrounded - constant).abs().max()


def check_rounding_of_the_weight(module, dtype: torch.dtype) -> None:
    """A weight of another dtype than a 16-bit activation's is rounded to that one."""
    found = case((40, 17, 65), dtype)
    for name in NAMES:
        narrow = list(found.arguments[name])
        narrow[1] = narrow[1].to(dtype)
        wide = list(narrow)
        # nearer to what it is rounded to than to any other number of 16 bits
        wide[1] = narrow[1].float() * (1 + 2**-13)
        assert not torch.equal(wide[1], narrow[1].float())
        assert_same(results(module, name, wide), results(module, name, narrow))


def check_nan(module) -> None:
    """A NaN reaches what it reaches in torch."""
    found = case((40, 6, 10), torch.float32, "ranks")
    for name, places in _VALUES.items():
        for place in places:
            arguments = list(found.arguments[name])
            arguments[place] = arguments[place].contiguous().clone()
            arguments[place].view(-1)[2] = torch.nan
            if name == "moment_statistics" and place == 3:  # second moments are symmetric
                arguments[place][2, 0] = torch.nan
            ours, expected = results(module, name, arguments), results(reference, name, arguments)
            for key, value in ours.items():
                assert torch.equal(value.isnan(), expected[key].isnan()), (name, place, key)
