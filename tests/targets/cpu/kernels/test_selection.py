"""Sorting, top k, non-zero positions and distinct elements, against NumPy."""

import ml_dtypes
import numpy as np
import pytest
from tvm import relax

from graphopt.targets.cpu.kernels.selection import (
    argsort,
    distinct_fill,
    nonzero_count,
    nonzero_fill,
    starts,
)
from graphopt.targets.cpu.kernels.topk import topk

ORDERED = ["int8", "uint8", "int32", "int64", "uint64", "float16", "bfloat16", "float32", "float64"]


def sample(shape, dtype, seed=0):
    """Few distinct values, so that there are ties; the extremes of the type; NaN for floats."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if "float" in dtype:
        storage = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
        values = np.array([-np.inf, -2, -0.5, 0, 0.5, 1, 3, np.inf, np.nan])
        return rng.choice(values, shape).astype(storage)
    info = np.iinfo(dtype)
    return rng.choice(np.array([info.min, 1, 2, 3, info.max - 1, info.max], dtype), shape)


def stable_order(x, descending, axis):
    """Positions in order; ties by position, NaN as the largest."""
    wide = x if x.dtype.kind in "iu" else x.astype(np.float64)
    _, rank = np.unique(wide, return_inverse=True)
    rank = rank.reshape(x.shape)
    return np.argsort(-rank if descending else rank, axis=axis, kind="stable")


@pytest.fixture(scope="module")
def sorters(compile_kernels):
    kernels = {}
    for dtype in ORDERED:
        kernels[f"top_{dtype}"] = topk(None, None, None, None, dtype, True)
        kernels[f"sort_{dtype}"] = argsort(None, None, dtype)
        for way in ("largest", "smallest"):
            kernels[f"{way}_{dtype}"] = topk(None, None, 1, None, dtype, way == "largest")
    kernels["bottom_float32"] = topk(3, None, 1, 4, "float32", False, "k is too large")
    return compile_kernels(kernels)


def take(x, order, axis=1):
    return np.take_along_axis(x, order, axis)


@pytest.mark.parametrize("shape", [(2, 17, 3), (1, 64, 1), (3, 1, 2), (1, 200, 2)], ids=str)
@pytest.mark.parametrize("dtype", ORDERED)
def test_topk_is_the_head_of_the_sorted_axis(sorters, dtype, shape):
    x = sample(shape, dtype)
    for k in {0, 1, min(5, shape[1]), shape[1]}:
        out = (shape[0], k, shape[2])
        values, indices = sorters[f"top_{dtype}"]([x], [(out, dtype), (out, "int64")])
        order = stable_order(x, True, 1)[:, :k]
        np.testing.assert_array_equal(indices, order)
        assert values.tobytes() == take(x, order).tobytes()


def test_topk_smallest(sorters):
    x = sample((3, 30, 1), "float32")
    out = (3, 4, 1)
    values, indices = sorters["bottom_float32"]([x], [(out, "float32"), (out, "int64")])
    order = stable_order(x, False, 1)[:, :4]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, take(x, order))


@pytest.mark.parametrize("way", ["largest", "smallest"])
@pytest.mark.parametrize("dtype", ORDERED)
def test_topk_passes_over_blocks_that_hold_nothing_better(sorters, dtype, way):
    """Where elements lie side by side; of one slice the best comes late, after equal ones."""
    x = sample((2, 203, 1), dtype)
    flat = x.reshape(1, -1)
    by_rank = stable_order(flat, way == "largest", 1)[0]
    best, worst = flat[0, by_rank[0]], flat[0, by_rank[-1]]
    x[1] = worst
    x[:, 170] = best
    for k in (1, 7, 203):
        out = (2, k, 1)
        values, indices = sorters[f"{way}_{dtype}"]([x], [(out, dtype), (out, "int64")])
        order = stable_order(x, way == "largest", 1)[:, :k]
        np.testing.assert_array_equal(indices, order)
        assert values.tobytes() == take(x, order).tobytes()


def test_topk_of_too_few_elements(sorters):
    out = (3, 4, 1)
    with pytest.raises(RuntimeError, match="k is too large"):
        sorters["bottom_float32"](
            [np.zeros((3, 3, 1), np.float32)], [(out, "float32"), (out, "int64")]
        )


@pytest.mark.parametrize("shape", [(17, 1), (64, 3), (1, 2), (0, 3), (5, 0)], ids=str)
@pytest.mark.parametrize("dtype", ORDERED)
def test_argsort_is_stable(sorters, dtype, shape):
    x = sample(shape, dtype)
    line = ((shape[0],), "int64")
    order, _ = sorters[f"sort_{dtype}"]([x], [line, line])
    expected = np.arange(shape[0])
    for column in reversed(range(shape[1])):
        expected = expected[stable_order(x[expected, column], False, 0)]
    np.testing.assert_array_equal(order, expected)


FLAT = ["bool", "int64", "float32", "float16"]


@pytest.fixture(scope="module")
def flat(compile_kernels):
    kernels = {}
    for dtype in FLAT:
        kernels[f"count_{dtype}"] = nonzero_count(dtype)
        kernels[f"fill_{dtype}"] = nonzero_fill(dtype)
    kernels["sort"] = argsort(None, None, "int64")
    kernels["starts"] = starts("int64")
    kernels["by_value"] = distinct_fill(True)
    kernels["by_place"] = distinct_fill(False)
    return compile_kernels(kernels)


@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize("dtype", FLAT)
def test_nonzero(flat, dtype, n):
    x = sample((n,), dtype)
    expected = np.flatnonzero(x)
    (count,) = flat[f"count_{dtype}"]([x], [((1,), "int64")])
    assert count == len(expected)
    (found,) = flat[f"fill_{dtype}"]([x], [((len(expected),), "int64")])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(0, 1), (1, 1), (60, 1), (60, 2)], ids=str)
@pytest.mark.parametrize("by_value", [True, False])
def test_distinct(flat, by_value, shape):
    n, width = shape
    x = np.random.default_rng(n).integers(-9 // width**2, 9 // width**2, shape)
    line = ((n,), "int64")
    order, _ = flat["sort"]([x], [line, line])
    (begins,) = flat["starts"]([x, order], [((n,), "bool")])
    values, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=0
    )
    assert begins.sum() == len(values)
    size = ((len(values),), "int64")
    found = flat["by_value" if by_value else "by_place"]([begins, order], [size, line, size, size])
    if not by_value:
        placed = np.argsort(first, kind="stable")
        rank = np.argsort(placed, kind="stable")
        first, inverse, counts = first[placed], rank[inverse], counts[placed]
    for actual, expected in zip(found, (first, inverse, counts), strict=False):
        np.testing.assert_array_equal(actual, expected)


def test_nonzero_inside_a_relax_module(compile_relax):
    def emit(builder, x):
        count = builder.add_func(nonzero_count("float32"), "nonzero_count")
        double = builder.emit(relax.op.add(x, x))
        found = builder.emit(relax.call_tir(count, [double], relax.TensorType((1,), "int64")))
        return builder.emit(relax.op.add(found, found))

    run = compile_relax([(("n",), "float32")], emit)
    assert run(np.array([-1, 0, 2, np.nan, 3], np.float32))[0] == 8
    assert run(np.zeros(0, np.float32))[0] == 0


def test_topk_inside_a_relax_module(compile_relax):
    def emit(builder, scores, bias):
        batch = scores.ty.shape[0]
        kernel = builder.add_func(topk(1, None, None, 3, "float32", True), "topk")
        total = builder.emit(relax.op.add(scores, bias))
        columns = builder.emit(relax.op.permute_dims(total, (1, 0)))
        cube = builder.emit(relax.op.reshape(columns, (1, 20, batch)))
        types = [relax.TensorType((1, 3, batch), dtype) for dtype in ("float32", "int64")]
        found = builder.emit(relax.call_tir(kernel, [cube], types))
        values = builder.emit(relax.op.nn.relu(relax.TupleGetItem(found, 0)))
        return builder.emit(relax.Tuple([values, relax.TupleGetItem(found, 1)]))

    run = compile_relax([(("b", 20), "float32"), ((20,), "float32")], emit)
    for batch in (1, 7):
        scores = np.random.default_rng(batch).standard_normal((batch, 20)).astype(np.float32)
        values, indices = run(scores, np.arange(20, dtype=np.float32))
        total = (scores + np.arange(20, dtype=np.float32)).T[None]
        order = np.argsort(-total, axis=1, kind="stable")[:, :3]
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_array_equal(values, np.maximum(take(total, order), 0))
