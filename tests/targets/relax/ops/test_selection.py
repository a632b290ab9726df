"""TopK, NonZero, Unique and Compress against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import agree

from graphopt.errors import InputError, UnsupportedOpError
from graphopt.testing import Compiled, parse

RNG = np.random.default_rng(7)


def with_ties(*shape: int) -> np.ndarray:
    return RNG.integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("length", [1, 2, 7, 33])
def test_topk_takes_the_lower_index_among_equals(largest: int, length: int) -> None:
    agree(
        f"""g (float[N,{length},3] x) => (float[N,K,3] v, int64[N,K,3] i)
            <int64[1] k = {{{min(length, 5)}}}>
            {{ v, i = TopK<axis=1, largest={largest}>(x, k) }}""",
        *({"x": with_ties(n, length, 3)} for n in (1, 4)),
    )


@pytest.mark.parametrize("dtype", ["int64", "float", "double", "uint8", "int32"])
def test_topk_of_every_kind(dtype: str) -> None:
    numpy_dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    agree(
        f"""g ({dtype}[N,9] x) => ({dtype}[N,4] v, int64[N,4] i) <int64[1] k = {{4}}>
            {{ v, i = TopK(x, k) }}""",
        {"x": RNG.integers(0, 6, (5, 9)).astype(numpy_dtype)},
    )


def test_topk_with_k_known_at_run_time() -> None:
    agree(
        "g (float[N,6] x, int64[1] k) => (float[N,K] v, int64[N,K] i) { v, i = TopK(x, k) }",
        *({"x": with_ties(3, 6), "k": np.array([k])} for k in (1, 3, 6)),
    )


def test_topk_of_more_than_there_is() -> None:
    graph = parse(
        "g (float[N,6] x, int64[1] k) => (float[N,K] v, int64[N,K] i) { v, i = TopK(x, k) }"
    )
    with pytest.raises(InputError, match="k is larger than the axis"):
        Compiled(graph)({"x": with_ties(2, 6), "k": np.array([7])})
    with pytest.raises(InputError, match="TopK 'v': k is negative"):
        Compiled(graph)({"x": with_ties(2, 6), "k": np.array([-1])})


def test_nonzero_of_one_number() -> None:
    graph = parse(
        "g (float[N] x) => (int64[a,b] y) { s = ReduceSum<keepdims=0>(x) y = NonZero(s) }"
    )
    with pytest.raises(UnsupportedOpError, match=r"NonZero .*one number; reshape that to \[1\]"):
        Compiled(graph)


def test_topk_puts_nan_first() -> None:
    graph = parse(
        "g (float[5] x) => (float[3] v, int64[3] i) <int64[1] k = {3}> { v, i = TopK(x, k) }"
    )
    found = Compiled(graph)({"x": np.array([1, np.nan, 3, -np.inf, np.inf], np.float32)})
    assert found["i"].tolist() == [1, 4, 2]


@pytest.mark.parametrize("dtype", ["bool", "int64", "float", "uint8"])
@pytest.mark.parametrize("dims", ["N", "N,3", "2,N,2"])
def test_nonzero(dtype: str, dims: str) -> None:
    numpy_dtype = {"float": "float32"}.get(dtype, dtype)
    for n in (1, 6):
        shape = [n if d == "N" else int(d) for d in dims.split(",")]
        x = RNG.integers(0, 2, shape).astype(numpy_dtype)
        agree(
            f"g ({dtype}[{dims}] x) => (int64[R,M] y) {{ y = NonZero(x) }}",
            {"x": x},
            {"x": np.zeros_like(x)},
            {"x": np.ones_like(x)},
        )


def test_what_follows_nonzero_knows_its_size() -> None:
    agree(
        """g (float[N,3] x) => (float[M] y) {
            at = NonZero(x)
            rows = Transpose<perm=[1,0]>(at)
            z = GatherND(x, rows)
            y = Neg(z)
        }""",
        *({"x": with_ties(n, 3)} for n in (1, 5)),
    )


@pytest.mark.parametrize("is_sorted", [0, 1])
def test_unique(is_sorted: int) -> None:
    agree(
        f"""g (float[N] x) => (float[M] y, int64[A] first, int64[N] inverse, int64[B] counts)
            {{ y, first, inverse, counts = Unique<sorted={is_sorted}>(x) }}""",
        *({"x": with_ties(n)} for n in (1, 2, 40)),
    )


def test_what_follows_unique_knows_its_sizes() -> None:
    """Rows are looked up once for each id, then put where the ids were."""
    agree(
        """g (int64[K] ids, float[9,4] table) => (float[K,4] y, float[M,4] shares) {
            found, first, inverse, counts = Unique<sorted=0>(ids)
            rows = Gather(table, found)
            where = Cast<to=6>(inverse)
            y = Gather(rows, where)
            one = Constant<value_ints=[1]>()
            columns = Unsqueeze(counts, one)
            weights = Cast<to=1>(columns)
            shares = Div(rows, weights)
        }""",
        *({"ids": RNG.integers(0, 9, n), "table": with_ties(9, 4)} for n in (1, 8)),
    )


@pytest.mark.parametrize("is_sorted", [0, 1])
@pytest.mark.parametrize(
    ("dims", "axis", "distinct"), [("N,3", 0, "M,3"), ("3,N", -1, "3,M"), ("2,N,2", 1, "2,M,2")]
)
def test_unique_slices_along_an_axis(is_sorted: int, dims: str, axis: int, distinct: str) -> None:
    shapes = [[n if d == "N" else int(d) for d in dims.split(",")] for n in (1, 50)]
    agree(
        f"""g (int64[{dims}] x) =>
            (int64[{distinct}] y, int64[M] first, int64[N] inverse, int64[M] counts)
            {{ y, first, inverse, counts = Unique<sorted={is_sorted}, axis={axis}>(x) }}""",
        *({"x": RNG.integers(0, 2, shape)} for shape in shapes),
    )


def test_compress() -> None:
    agree(
        "g (float[N,4] x, bool[N] c) => (float[M,4] y) { y = Compress<axis=0>(x, c) }",
        *({"x": with_ties(n, 4), "c": RNG.integers(0, 2, n).astype(bool)} for n in (1, 9)),
    )


def test_compress_of_all_elements() -> None:
    agree(
        "g (float[N,4] x, bool[K] c) => (float[M] y) { y = Compress(x, c) }",
        {"x": with_ties(3, 4), "c": np.array([1, 0, 0, 1, 1], bool)},
    )
