"""Reading images between their elements: coordinates in float32, and filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from graphopt.targets.relax.lowering import int64
from graphopt.targets.relax.scalar import const

Scalar = Any


def f32(x: Any) -> Scalar:
    """A number as float32, in which ONNX Runtime computes coordinates too."""
    return const(float(x), "float32") if isinstance(x, (int, float)) else x.astype("float32")


@dataclass(frozen=True)
class Filter:
    """How the elements around a position count.

    Attributes:
        radius: how far from the position the farthest of them lie, in elements.
        weight: what the element at a distance counts.
    """

    radius: int
    weight: Callable[[Scalar], Scalar]


def filter_of(mode: str, a: float) -> Filter:
    """The filter of interpolation "linear" or "cubic", the latter with coefficient `a`."""
    return Filter(1, _triangle) if mode == "linear" else Filter(2, lambda d: _cubic(d, a))


def _triangle(distance: Scalar) -> Scalar:
    return tirx.max(f32(1) - tirx.abs(distance), f32(0))


def _cubic(distance: Scalar, a: float) -> Scalar:
    """Keys' cubic convolution."""
    d = tirx.abs(distance)
    near = ((f32(a + 2) * d - f32(a + 3)) * d) * d + f32(1)
    far = ((f32(a) * d - f32(5 * a)) * d + f32(8 * a)) * d - f32(4 * a)
    return tirx.Select(d <= f32(1), near, tirx.Select(d < f32(2), far, f32(0)))


def clamped(index: Any, size: Any) -> Any:
    """`index`, moved to the nearest one that is valid."""
    return tirx.max(tirx.min(index, int64(size) - int64(1)), int64(0))
