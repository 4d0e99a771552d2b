"""What the launchers declare to read and write, held against the addresses the kernels touch."""

from __future__ import annotations

import pytest
import torch
from helpers.touched import Touch, assert_declared

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")

from fastres.backends import triton as backend  # noqa: E402
from fastres.kernels import audit, bn_stats, partials, tuned  # noqa: E402
from fastres.kernels import launch as launch_module  # noqa: E402
from fastres.kernels.launch import launch, recording  # noqa: E402


@pytest.fixture
def touch(monkeypatch):
    return Touch(monkeypatch)


def activation(channels: int = 5, size: int = 7, images: int = 2) -> torch.Tensor:
    return torch.randn(images, channels, size, size).to(memory_format=torch.channels_last)


def vectors(count: int, channels: int = 5) -> list[torch.Tensor]:
    return [torch.rand(channels) + 0.5 for _ in range(count)]


def test_statistics(touch):
    assert_declared(touch(lambda: backend.bn_stats(activation())))


@pytest.mark.parametrize("kind", ["none", "identity", "bn", "pad"])
def test_join_forward(touch, kind):
    y = activation()
    shortcut = {"none": None, "pad": activation(3, 14)}.get(kind, y if kind == "bn" else None)
    if kind == "identity":
        shortcut = activation()
    beside = vectors(4) if kind == "bn" else [None] * 4
    stride = 2 if kind == "pad" else 1
    assert_declared(
        touch(lambda: backend.bn_apply(y, *vectors(4), shortcut, *beside, stride, True))
    )


@pytest.mark.parametrize("kind", ["none", "identity", "bn", "pad"])
def test_join_backward(touch, kind):
    y, dout = activation(), activation()
    out = None if kind == "none" else activation()
    shortcut, beside = (activation(), vectors(4)) if kind == "bn" else (None, [None] * 4)
    size = {"none": [], "pad": [2, 3, 13, 14]}.get(kind, list(y.shape))
    stride = 2 if kind == "pad" else 1
    assert_declared(
        touch(
            lambda: backend.bn_backward_reduce(
                dout, out, y, *vectors(4), shortcut, *beside[:2], True
            )
        )
    )
    assert_declared(
        touch(
            lambda: backend.bn_backward(
                dout, out, y, *vectors(6), shortcut, *beside, size, stride, True
            )
        )
    )


def test_a_frozen_join_leaves_y_alone():
    # the interpreter loads what the compiler drops, so this one is asked what it declares
    y = activation()
    with recording() as launches:
        backend.bn_backward(
            y, y.clone(), y, *vectors(4), *[None] * 7, list(y.shape), 1, True
        )  # fmt: skip
    assert set(launches[0].bytes_read()) == {"dout_ptr", "out_ptr", "mean_ptr", "invstd_ptr",
                                             "weight_ptr", "bias_ptr"}  # fmt: skip


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("prologue", [False, True])
def test_convolution(touch, kernel, stride, prologue):
    x, weight = activation(), torch.randn(6, 5, kernel, kernel)
    pro = vectors(4) if prologue else [None] * 4
    with tuned.provider("triton"):
        found = touch(
            lambda: backend.conv_stats(
                x, weight, [stride] * 2, [kernel // 2] * 2, [1, 1], 1, *pro, True
            )
        )
    assert_declared(found)
    out = (7 - 1) // stride + 1
    assert found.launches[0].flops == 2 * 2 * out * out * 6 * 5 * kernel * kernel


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("shortcut", [False, True])
def test_inference_convolution(touch, kernel, stride, shortcut):
    x, weight, bias = activation(), torch.randn(6, 5, kernel, kernel), torch.randn(6)
    out = (7 - 1) // stride + 1
    beside = activation(6, out) if shortcut else None
    with tuned.provider("triton"):
        found = touch(
            lambda: backend.conv_bias_act(
                x, weight, bias, beside, [stride] * 2, [kernel // 2] * 2, [1, 1], 1, True
            )
        )
    assert_declared(found)
    assert found.launches[0].flops == 2 * 2 * out * out * 6 * 5 * kernel * kernel


def test_max_pool(touch):
    window = ([3, 3], [2, 2], [1, 1])
    x = activation()
    out, index = backend.max_pool(x, *window)
    assert_declared(touch(lambda: backend.max_pool(x, *window)))
    assert_declared(touch(lambda: backend.max_pool_backward(out, index, list(x.shape), *window)))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pad_shortcut(touch, stride):
    x = activation()
    out = backend.pad_shortcut(x, 8, stride)
    assert_declared(touch(lambda: backend.pad_shortcut(x, 8, stride)))
    assert_declared(touch(lambda: backend.pad_shortcut_backward(out, list(x.shape), stride)))


def test_many_partial_statistics(touch):
    count, mean, m2 = torch.ones(1100), torch.randn(1100, 3), torch.rand(1100, 3)
    assert_declared(touch(lambda: partials.merge_statistics(count, mean, m2)))


def test_every_shipped_kernel_declares():
    named = set()
    for path in tuned.CONFIGS.glob("*.json"):
        for row in tuned.load_rows(path)[1]:
            with recording() as launches:
                for _ in audit.MAKERS[row["operator"]](row, row["dtypes"][0]):
                    pass
            for made in launches:
                named.add(made.kernel.__name__)
                assert made.bytes_written(), made.kernel.__name__
                assert made.bytes_read(), made.kernel.__name__
    assert {"bn_stats_kernel", "conv1x1_kernel", "max_pool_backward_kernel"} <= named


def test_what_is_not_declared_is_an_error():
    y = activation()
    with recording() as launches:
        launch(bn_stats.bn_stats_kernel, 1, y, y)
        launch(bn_stats.bn_stats_kernel, 1, y, y, writes=("out_ptr",))
    with pytest.raises(ValueError, match="bn_stats_kernel must declare what it writes, got None"):
        launches[0].bytes_read()
    with pytest.raises(ValueError, match="must name arguments of bn_stats_kernel, got out_ptr"):
        launches[1].bytes_written()


def test_a_tensor_passed_twice_is_read_once():
    y = activation()
    with recording() as launches:
        backend.bn_apply(y, *vectors(4), y, *[None] * 4, 1, True)
    assert launches[0].bytes_read()["y_ptr"] == y.numel() * 4
    assert "s_ptr" not in launches[0].bytes_read()
    assert launches[0].bytes_written() == {"out_ptr": y.numel() * 4}


def test_launches_are_made_beside_the_record():
    assert launch_module.made()
    with recording() as launches:
        assert not launch_module.made()
        with recording(make=True) as made:
            assert launch_module.made()
            mean, _ = backend.bn_stats(torch.ones(1, 2, 3, 3))
    assert launches == []
    assert len(made) == 2
    assert mean.tolist() == [1, 1]
