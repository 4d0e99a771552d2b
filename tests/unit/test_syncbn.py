"""Statistics over two ranks with unequal batches: as one process with the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers import two_ranks
from torch import Tensor, nn

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
)

CLOSE = {torch.float32: 2e-5, torch.float64: 1e-10}
DTYPES = tuple(CLOSE)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """The results of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(two_ranks.run, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def both(ranks, name, dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return tuple(rank[f"{name} {dtype}"] for rank in ranks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    ["unequal", "empty", "single value", "moment form", "moment form, empty", "all empty",
     "moment form, all empty"],
)  # fmt: skip
def test_two_ranks_are_one_process(ranks, name, dtype):
    first, second = both(ranks, name, dtype)
    block = two_ranks.make_block(dtype, name)
    whole = two_ranks.step(block, *two_ranks.data(name, dtype))
    parameters = dict(block.named_parameters())
    for key, want in whole.items():
        if key in ("out", "dx"):
            got = torch.cat([first[key], second[key]])
        elif key.startswith("d") and key[1:] in parameters:
            # gradients are local, to be summed as DistributedDataParallel does
            got = first[key] + second[key]
        else:
            got = first[key]
            assert torch.equal(first[key], second[key]), key
        scale = max(1.0, want.double().abs().max().item() if want.numel() else 0.0)
        torch.testing.assert_close(
            got, want, rtol=0, atol=CLOSE[dtype] * scale, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shortcut_whose_statistics_stay_on_its_rank(ranks, dtype):
    """bn over the ranks, the projection's BN not: plain modules, joined by hand, are the oracle."""
    first, second = both(ranks, "shortcut of each rank", dtype)
    sizes = list(two_ranks.CASES["shortcut of each rank"][0])
    block = two_ranks.make_block(dtype, "shortcut of each rank")
    x, dout = two_ranks.data("shortcut of each rank", dtype)
    x.requires_grad_()
    main = block.bn1(block.conv1(x)).relu()
    main = block.bn2(block.conv2(main))
    projected = block.downsample[0](x)
    norm: nn.Module = block.downsample[1]
    beside = torch.cat([norm(part) for part in projected.split(sizes)])
    out = (main + beside).relu()
    out.backward(dout)
    close = {"rtol": 0, "atol": 5 * CLOSE[dtype]}
    torch.testing.assert_close(torch.cat([first["out"], second["out"]]), out.detach(), **close)
    torch.testing.assert_close(torch.cat([first["dx"], second["dx"]]), x.grad, **close)
    for key, parameter in block.named_parameters():
        name = f"d{key}"
        torch.testing.assert_close(first[name] + second[name], parameter.grad, **close)
    assert not torch.equal(first["downsample.1.running_mean"], second["downsample.1.running_mean"])
    assert torch.equal(first["bn2.running_mean"], second["bn2.running_mean"])
