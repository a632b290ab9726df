"""Random arrays for the inputs of a graph, whose ids lie within the tables that they index."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from graphopt.analysis.ids import IdRange, id_ranges
from graphopt.errors import InputError
from graphopt.ir import dims
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType, dtype_to_numpy

DEFAULT_SIZE = 3


def random_inputs(
    graph: Graph, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Arrays that `graph` can be run on: ids lie within every table they index.

    Args:
        sizes: the symbolic sizes by name; those not given are `DEFAULT_SIZE`.

    Raises:
        InputError: an input has no known rank, or no id fits all tables that it indexes.
    """
    given = sizes or {}
    rng = np.random.default_rng(seed)

    def size_of(dim: Dim) -> int:
        size = dims.substitute(dim, lambda name: _given_size(given, name))
        assert isinstance(size, int)
        return size

    ranges = id_ranges(graph)
    arrays = {}
    for value in graph.inputs:
        if not isinstance(value.type, TensorType) or value.type.shape is None:
            reason = f"input {value.name!r}: {value.type} has no shape to draw from"
            raise InputError(f"{reason}; give arrays with --inputs")
        shape = tuple(size_of(dim) for dim in value.type.shape)
        if math.prod(shape) >= 2**56:  # more than NumPy, or any memory, has room for
            raise MemoryError
        array = _random_array(rng, value.type.dtype, shape)
        arrays[value.name] = _with_ids(rng, array, ranges.get(value.name, []), size_of, value)
    return arrays


def _given_size(given: Mapping[str, int], name: str) -> int:
    """The size called `name`; `N@x` is what input x calls N, and may be given as N."""
    return given.get(name, given.get(name.partition("@")[0], DEFAULT_SIZE))


def _random_array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype == "string":
        return rng.choice(np.array(["a", "b", "c"], dtype=object), shape)
    numpy_dtype = dtype_to_numpy(dtype)
    if numpy_dtype.kind in "iu":
        return rng.integers(0, 8, shape).astype(numpy_dtype)
    if numpy_dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(numpy_dtype)
    return np.asarray(rng.normal(size=shape)).astype(numpy_dtype)


def _with_ids(
    rng: np.random.Generator,
    array: np.ndarray,
    ranges: list[IdRange],
    size_of: Callable[[Dim], int],
    value: Value,
) -> np.ndarray:
    """`array` with the elements that index something drawn anew."""
    low = np.full(array.shape, -(2**62))
    high = np.full(array.shape, 2**62)
    for ids in ranges:
        index = [slice(None)] * array.ndim
        for axis, start, stop in ids.region:
            index[axis] = slice(start, stop)
        region = tuple(index)
        low[region] = np.maximum(low[region], size_of(ids.low))
        high[region] = np.minimum(high[region], size_of(ids.high))
    chosen = low > -(2**62)
    low = np.where(chosen & (high > 0), np.maximum(low, 0), low)
    if np.any(chosen & (low >= high)):
        raise InputError(f"input {value.name!r}: no id is valid everywhere it is looked up")
    drawn = rng.integers(np.where(chosen, low, 0), np.where(chosen, high, 1))
    array = np.where(chosen, drawn, array).astype(array.dtype)
    for ids in ranges:
        if ids.sorted_axis is not None and array.shape[ids.sorted_axis]:
            array = np.sort(array, axis=ids.sorted_axis)
            along = np.moveaxis(array, ids.sorted_axis, 0)
            # Whether the last offset opens a bag or ends it, all that is there may be in bags.
            along[-1] = size_of(ids.high) - 1
            along[0] = size_of(ids.low)
    return array
