"""Ten classes of 32x32 images drawn from a seed: textured shapes among smaller, misleading ones.

A class is a shape together with a texture, so neither is enough by itself. Place, size, turn and
all colours are drawn anew for every image and say nothing about the class; the background, the
smaller shapes (distractors, of any class) and a bar across the image are there to mislead.
"""

from __future__ import annotations

import numpy as np
import torch

from fastres.training.data.augment import CropAndFlip
from fastres.training.data.source import ImageTensors, Source, pixel_mean

SHAPES = ("disc", "ring", "square", "triangle", "cross")
TEXTURES = ("stripes", "checks")
CLASSES = tuple(f"{shape} of {texture}" for shape in SHAPES for texture in TEXTURES)
SIZE = 32
_CHUNK = 1000  # images drawn at a time
_BEHIND = 2  # distractors that the object may hide; one more may hide a part of it
_NOISE = 0.06  # standard deviation, of a range of 1
_TURN = 0.6  # largest turn of a shape, in radians
_HUE_SPREAD = 0.25  # standard deviation of a class's hue, of a circle of 1

Array = np.ndarray


def open_procedural(num_images: int, data_seed: int, seed: int) -> Source:
    """`num_images` to train on and a fifth of that, at least 10, to test on.

    `data_seed` decides the images, `seed` their augmentation: 4-pixel padding, crop and flip, as
    for CIFAR-10. Classes are as equal in number as can be. The images depend on nothing else, but
    for a last bit of NumPy's trigonometry on another machine.
    """
    images, labels = make_images(num_images, data_seed, stream=0)
    test_images, test_labels = make_images(max(10, num_images // 5), data_seed, stream=1)
    mean = pixel_mean(images)
    return Source(
        train=ImageTensors(images, labels, mean, CropAndFlip(padding=4, flip=True), seed),
        held_out=ImageTensors(test_images, test_labels, mean),
        held_out_name="test",
        num_classes=len(CLASSES),
        classes=CLASSES,
        description=f"procedural images (generated from seed {data_seed}): {num_images} training "
        f"and {len(test_labels)} test images, {SIZE}x{SIZE}",
    )


def make_images(count: int, seed: int, stream: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [count, 3, 32, 32] and labels int64 [count]; a stream shares none with others.

    A longer set of the same seed and stream starts with the whole chunks of a shorter one.
    """
    images = np.empty((count, 3, SIZE, SIZE), dtype=np.uint8)
    labels = np.arange(count) % len(CLASSES)
    for number, start in enumerate(range(0, count, _CHUNK)):
        generator = np.random.Generator(np.random.PCG64([seed, stream, number]))
        part = slice(start, min(start + _CHUNK, count))
        images[part] = _draw(labels[part], generator)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _draw(labels: Array, generator: np.random.Generator) -> Array:
    count = len(labels)
    canvas = _background(count, generator)
    for _ in range(_BEHIND):
        _distract(canvas, generator)
    # the object stays inside, so that a crop by 4 pixels cuts off no more than a part of it
    place = SIZE / 2 + generator.uniform(-4, 4, (2, count))
    _paint(canvas, labels, place, generator.uniform(8, 12, count), generator)
    _distract(canvas, generator)
    _bar(canvas, generator)
    canvas += generator.normal(0, _NOISE, canvas.shape).astype(np.float32)
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8)


def _distract(canvas: Array, generator: np.random.Generator) -> None:
    """A smaller shape of any class, anywhere."""
    count = len(canvas)
    kinds = generator.integers(0, len(CLASSES), count)
    place = generator.uniform(3, SIZE - 3, (2, count))
    _paint(canvas, kinds, place, generator.uniform(3, 6, count), generator)


def _grid(place: Array, angle: Array) -> tuple[Array, Array]:
    """Pixel coordinates [n, 32, 32] about `place` [2, n], turned by `angle` [n]."""
    axis = np.arange(SIZE) + 0.5
    x = (axis[None, None, :] - place[0][:, None, None]).astype(np.float32)
    y = (axis[None, :, None] - place[1][:, None, None]).astype(np.float32)
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    return x * cos + y * sin, y * cos - x * sin


def _background(count: int, generator: np.random.Generator) -> Array:
    """Two colours mixed by a slow wave and a quick one: float32 [count, 3, 32, 32]."""
    waves = 0.0
    for low, high in ((14, 40), (5, 9)):
        period = generator.uniform(low, high, count)
        place = generator.uniform(0, SIZE, (2, count))
        across, _ = _grid(place, generator.uniform(0, 2 * np.pi, count))
        waves = waves + np.sin(across * (2 * np.pi / period).astype(np.float32)[:, None, None])
    first, second = generator.uniform(0.2, 0.8, (2, count, 3, 1, 1)).astype(np.float32)
    weight = 0.5 + 0.2 * waves[:, None]
    return first * weight + second * (1 - weight)


def _paint(
    canvas: Array, kinds: Array, place: Array, radius: Array, generator: np.random.Generator
) -> None:
    """Draws one shape of class `kinds` [n] over each image, in two colours of its own."""
    count = len(kinds)
    x, y = _grid(place, generator.uniform(-_TURN, _TURN, count))
    r = radius.astype(np.float32)[:, None, None]
    inside = np.clip(0.5 - _distance(kinds // len(TEXTURES), x, y, r), 0, 1)
    u, v = _grid(place, generator.uniform(0, 2 * np.pi, count))
    pitch = (2 * np.pi / generator.uniform(4, 6, count)).astype(np.float32)[:, None, None]
    wave = np.sin(u * pitch)
    checks = (kinds % len(TEXTURES) == 1)[:, None, None]
    wave = np.where(checks, wave * np.sin(v * pitch) * 1.5, wave)
    weight = np.clip(0.5 + wave, 0, 1)[:, None]
    hue = kinds / len(CLASSES) + generator.normal(0, _HUE_SPREAD, count)
    first = _colour(hue)
    # the second colour is much lighter or much darker
    second = (first + generator.choice((-0.6, 0.6), (count, 1, 1, 1)).astype(np.float32)).clip(0, 1)
    colour = first * weight + second * (1 - weight)
    canvas += (colour - canvas) * inside[:, None]


def _colour(hue: Array) -> Array:
    """Colours [n, 3, 1, 1] of hues, where the circle is 1."""
    parts = hue[:, None] - np.arange(3) / 3
    return (0.5 + 0.4 * np.cos(2 * np.pi * parts)).astype(np.float32)[:, :, None, None]


def _distance(shapes: Array, x: Array, y: Array, r: Array) -> Array:
    """Pixels from the edge of each image's shape, negative inside; areas are near 2 r*r for all."""
    result = np.empty_like(x)
    for number, name in enumerate(SHAPES):
        chosen = shapes == number
        result[chosen] = _SIGNED[name](x[chosen], y[chosen], r[chosen])
    return result


def _disc(x: Array, y: Array, r: Array) -> Array:
    return np.hypot(x, y) - 0.8 * r


def _ring(x: Array, y: Array, r: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.75 * r) - 0.25 * r


def _square(x: Array, y: Array, r: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.72 * r


def _triangle(x: Array, y: Array, r: Array) -> Array:
    half = np.float32(np.sqrt(3) / 2)
    return np.maximum(np.abs(x) * half + y / 2, -y) - 0.6 * r


def _cross(x: Array, y: Array, r: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    arms = np.maximum(x - r, y - 0.3 * r), np.maximum(x - 0.3 * r, y - r)
    return np.minimum(*arms)


_SIGNED = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}


def _bar(canvas: Array, generator: np.random.Generator) -> None:
    """A bar of one colour across each image, 1 to 2 pixels wide."""
    count = len(canvas)
    place = SIZE / 2 + generator.uniform(-8, 8, (2, count))
    x, _ = _grid(place, generator.uniform(0, 2 * np.pi, count))
    width = generator.uniform(0.5, 1, count).astype(np.float32)[:, None, None]
    inside = np.clip(0.5 + width - np.abs(x), 0, 1)[:, None]
    colour = generator.uniform(0, 1, (count, 3, 1, 1)).astype(np.float32)
    canvas += (colour - canvas) * inside
