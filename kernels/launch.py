"""The one way a Triton kernel is started, and the memory its results are written to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

# launches by kernel name since the process started: the proof that a kernel ran
launched: Counter[str] = Counter()

# a tile's row numbers are 32-bit until they are multiplied by a stride
MAX_ROWS = 2**31 - 2**16


class Launch(NamedTuple):
    """A launch that was recorded, and what it declares to move and to multiply.

    Attributes:
        writes: elements written of the kernel's arguments, by name; None: all of it. None for the
            whole says that nothing is declared.
        reads: elements read of the arguments that are not just read as a whole.
        flops: multiplications and additions of its matrix products.
    """

    kernel: Any
    programs: int
    args: tuple
    meta: dict[str, Any]
    writes: Mapping[str, int | None] | None = None
    reads: Mapping[str, int] = {}
    flops: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the kernel's arguments, by name."""
        named = zip(self.kernel.arg_names, self.args, strict=False)
        return {name: value for name, value in named if isinstance(value, Tensor)}

    def bytes_read(self) -> dict[str, int]:
        """Bytes read of each argument that is read.

        A tensor that the declaration does not mention is read once as a whole; one that is passed
        under two names is in the cache when the second one reads it.

        Raises:
            ValueError: the launcher declares nothing, or an argument that there is not.
        """
        return {name: count for name, (count, _) in self._moved().items() if count}

    def bytes_written(self) -> dict[str, int]:
        """Bytes written of each argument that is written; errors as `bytes_read`'s."""
        return {name: count for name, (_, count) in self._moved().items() if count}

    def _moved(self) -> dict[str, tuple[int, int]]:
        name = self.kernel.__name__
        if self.writes is None:
            raise ValueError(f"the launcher of {name} must declare what it writes, got None")
        unknown = {*self.writes, *self.reads} - set(self.kernel.arg_names)
        if unknown:
            raise ValueError(
                f"writes and reads must name arguments of {name}, got {', '.join(sorted(unknown))}"
            )
        moved, seen = {}, set()
        for argument, tensor in self.tensors().items():
            read = written = 0
            if argument in self.writes:
                read, declared = self.reads.get(argument, 0), self.writes[argument]
                written = tensor.numel() if declared is None else declared
            else:
                read = self.reads.get(argument, 0 if id(tensor) in seen else tensor.numel())
                seen.add(id(tensor))
            size = tensor.element_size()
            moved[argument] = (read * size, written * size)
        return moved


_recorded: ContextVar[list[Launch] | None] = ContextVar("fastres_recorded", default=None)
_making: ContextVar[bool] = ContextVar("fastres_making", default=True)


@contextmanager
def recording(*, make: bool = False) -> Iterator[list[Launch]]:
    """Collect the launches inside the `with`, of this thread.

    Args:
        make: make them as well; otherwise meta or fake tensors will do.
    """
    launches: list[Launch] = []
    tokens = _recorded.set(launches), _making.set(make)
    try:
        yield launches
    finally:
        _recorded.reset(tokens[0])
        _making.reset(tokens[1])


def made() -> bool:
    """Whether launches are made here, and not only recorded."""
    return _making.get()


def launch(
    kernel,
    programs: int,
    anchor: Tensor,
    *args,
    writes: Sequence[str] | Mapping[str, int] | None = None,
    reads: Mapping[str, int] | None = None,
    flops: int = 0,
    **meta,
) -> None:
    """Start `programs` instances of `kernel` on the current stream of `anchor`'s device.

    What is declared costs nothing when it runs; `fastres traffic` adds it up, and a test compares
    it with the addresses the kernel touches.

    Args:
        kernel: a `triton.jit` function.
        programs: size of the one-dimensional grid; zero starts nothing, as an empty grid is
            illegal.
        anchor: a tensor on the device where the kernel must run.
        writes: names of the kernel's pointer arguments that it writes, with the number of elements
            where that is not all of one. The others are read once.
        reads: elements that are read of an argument, where that is not all of it, or where it is
            also written. What a cache serves again does not count.
        flops: twice the multiply-adds of its matrix products.
    """
    if programs == 0:
        return
    # kernels step through a vector by one: an expanded or strided one is copied
    args = tuple(a.contiguous() if isinstance(a, Tensor) and a.dim() == 1 else a for a in args)
    # pinned, because Triton is about to change its default and with it the last bit of results
    meta = {"enable_fp_fusion": True, **meta}
    record = _recorded.get()
    if record is not None:
        declared = writes
        if writes is not None and not isinstance(writes, Mapping):
            declared = dict.fromkeys(writes)
        record.append(Launch(kernel, programs, args, meta, declared, reads or {}, flops))
        if not _making.get():
            return
    launched[kernel.__name__] += 1
    # who records is not to see the tensors that the interpreter copies
    with torch.cuda.device_of(anchor), _disable_current_modes() if record else nullcontext():
        kernel[(programs,)](*args, **meta)


def rows_of(activation: Tensor) -> int:
    """N*H*W of an activation [N, C, H, W].

    Raises:
        ValueError: more than a 32-bit row number can count.
    """
    rows = activation.shape[0] * activation.shape[2] * activation.shape[3]
    if rows > MAX_ROWS:
        raise ValueError(
            f"N*H*W must be at most {MAX_ROWS}, got {rows} from sizes {tuple(activation.shape)}"
        )
    return rows


def strided_elements(activation: Tensor, stride: int) -> int:
    """Elements of the pixels (i*stride, j*stride) of an activation [N, C, H, W]."""
    images, channels, height, width = activation.shape
    return images * channels * ((height - 1) // stride + 1) * ((width - 1) // stride + 1)


def dense(activation: Tensor | None) -> Tensor | None:
    """`activation` as a matrix [N*H*W, C] in memory: itself if channels_last, else a copy."""
    if activation is None:
        return None
    return activation.contiguous(memory_format=torch.channels_last)


def new_activation(like: Tensor, size: Sequence[int]) -> Tensor:
    """Uninitialised channels_last activation with the dtype and device of `like`."""
    return torch.empty(
        tuple(size), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def new_convolved(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Uninitialised channels_last output of the convolution of `x` with `weight`."""
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i]
        + 1
        for i in range(2)
    )
    return new_activation(x, (x.shape[0], weight.shape[0], height, width))


def new_statistics(like: Tensor, *size: int) -> Tensor:
    """Uninitialised tensor in the dtype that accumulates `like`: fp64 for fp64, else fp32."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(size, dtype=wide, device=like.device)


def accumulator(like: Tensor) -> tl.dtype:
    """Triton's name of the dtype of `new_statistics`."""
    return tl.float64 if like.dtype == torch.float64 else tl.float32


def new_matrix(like: Tensor, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
    """Uninitialised matrix [rows, columns] on the device of `like`."""
    return torch.empty((rows, columns), dtype=dtype, device=like.device)


def element(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a dtype of activations."""
    return getattr(tl, str(dtype).removeprefix("torch."))


def blocks(tile: int, channels: int) -> dict[str, int]:
    """BLOCK_M and BLOCK_C of an element-wise tile of about `tile` elements.

    64 channels are a full 128-byte line of a 16-bit activation; a taller tile then reuses the
    per-channel vectors for more rows.
    """
    block_c = min(triton.next_power_of_2(channels), 64)
    return {"BLOCK_M": max(tile // block_c, 1), "BLOCK_C": block_c}
