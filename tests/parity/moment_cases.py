"""The operators between a moment form's passes: random arguments, and what they must give in fp64.

z [M, K] and g [M, N] are random rows, y = z W^T; the moments and the product are sums over them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from parity.block_cases import Draw
from torch import Tensor

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
