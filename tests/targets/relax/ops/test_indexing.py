"""Lookups against ONNX Runtime and NumPy, and what an id out of range does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import agree

from graphopt.errors import IdError, InputError, UnsupportedOpError
from graphopt.testing import Compiled, parse

RNG = np.random.default_rng(3)
FAR = [-(2**63), -(2**63) + 1, -(2**31) - 1, 2**31, 2**62, 2**63 - 1]


def ramp(*shape: int) -> np.ndarray:
    return np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)


def ids(low: int, high: int, *shape: int) -> np.ndarray:
    return RNG.integers(low, high, shape)


# ------------------------------------------------------------------ valid positions


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(axis: int) -> None:
    agree(
        f"g (float[N,3,4] x, int64[M,2] i) => (float[a] y) {{ y = Gather<axis={axis}>(x, i) }}",
        *({"x": ramp(n, 3, 4), "i": ids(-n, n, m, 2)} for n, m in [(3, 5), (1, 1), (2, 0)]),
    )


def test_gather_from_a_table() -> None:
    agree(
        """g (int64[N,2] i, int32[M] j) => (float[a] y, float[a] z) <float[100,16] table>
            { y = Gather(table, i) z = Gather(table, j) }""",
        *({"i": ids(-100, 100, n, 2), "j": ids(0, 100, 7).astype(np.int32)} for n in (0, 1, 33)),
    )


def test_gather_of_a_constant_position() -> None:
    agree(
        """g (float[N,4] x) => (float[a] y, float[a] z) <int64 last = {-1}, int64[1] second = {1}>
            { y = Gather<axis=1>(x, last) z = Gather<axis=1>(x, second) }""",
        *({"x": ramp(n, 4)} for n in (0, 1, 5)),
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis: int) -> None:
    agree(
        f"""g (float[N,3,4] x, int64[N,2,M] i) => (float[a] y)
            {{ y = GatherElements<axis={axis}>(x, i) }}""",
        *({"x": ramp(n, 3, 4), "i": ids(-n, n, n, 2, m)} for n, m in [(3, 4), (1, 1), (2, 0)]),
    )


def test_gather_elements_of_a_vector() -> None:
    agree(
        "g (double[N] x, int32[M] i) => (double[a] y) { y = GatherElements(x, i) }",
        {"x": ramp(4).astype(np.float64), "i": ids(-4, 4, 9).astype(np.int32)},
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gather_nd(depth: int) -> None:
    agree(
        f"g (float[N,3,4] x, int64[M,2,{depth}] i) => (float[a] y) {{ y = GatherND(x, i) }}",
        *({"x": ramp(n, 3, 4), "i": ids(-n, n, m, 2, depth)} for n, m in [(3, 4), (2, 0), (1, 5)]),
    )


@pytest.mark.parametrize("batch_dims", [1, 2])
def test_gather_nd_with_a_batch(batch_dims: int) -> None:
    agree(
        f"g (float[N,3,4,2] x, int64[N,3,1] i) => (float[a] y) "
        f"{{ y = GatherND<batch_dims={batch_dims}>(x, i) }}",
        *({"x": ramp(n, 3, 4, 2), "i": ids(-3, 3, n, 3, 1)} for n in (0, 1, 5)),
    )


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
def test_reverse_sequence(time: int, batch: int) -> None:
    text = f"""g (float[N,M,2] x, int64[K] n) => (float[a] y)
        {{ y = ReverseSequence<time_axis={time}, batch_axis={batch}>(x, n) }}"""
    agree(text, *({"x": ramp(len(n), len(n), 2), "n": np.array(n)} for n in ([0, 1, 3, 4], [1])))


# -------------------------------------------------------------------- out of range

LOOKUPS = {
    "Gather from a table": "g (int64[M] i) => (float[a] y) <float[5,3] x> { y = Gather(x, i) }",
    "Gather": "g (float[N,3] x, int64[M] i) => (float[a] y) { y = Gather(x, i) }",
    "Gather of axis 1": "g (float[2,N] x, int64[M] i) => (float[a] y) { y = Gather<axis=1>(x, i) }",
    "GatherElements": "g (float[N] x, int64[M] i) => (float[a] y) { y = GatherElements(x, i) }",
    "GatherND": """g (float[N,3] x, int64[M] i) => (float[a] y) <int64[2] s = {-1, 1}>
        { j = Reshape(i, s) y = GatherND(x, j) }""",
}


def lookup(name: str, oob: Any = "error") -> tuple[Compiled, dict[str, np.ndarray]]:
    text = LOOKUPS[name]
    shape = {"Gather of axis 1": (2, 5), "GatherElements": (5,)}.get(name, (5, 3))
    return Compiled(parse(text), oob), {} if "table" in name else {"x": ramp(*shape)}


@pytest.mark.parametrize("name", LOOKUPS)
def test_an_id_out_of_range_is_an_error(name: str) -> None:
    compiled, feeds = lookup(name)
    op = name.split()[0]
    size = "5" if "table" in name else "N"
    for bad in [5, -6, *FAR]:
        with pytest.raises(IdError, match=rf"{op} 'y' \(axis of size {size}\)"):
            compiled({**feeds, "i": np.array([0, bad, 1])})
    compiled({**feeds, "i": np.array([-5, 4])})


@pytest.mark.parametrize("name", LOOKUPS)
@pytest.mark.parametrize("oob", ["clamp", "zero"])
def test_an_id_out_of_range_is_tamed(name: str, oob: str) -> None:
    compiled, feeds = lookup(name, oob)
    given = np.array([0, 4, -1, -5, 5, -6, *FAR])
    found = compiled({**feeds, "i": given})["y"]
    nearest = np.clip(given, -5, 4)
    wanted = compiled({**feeds, "i": nearest})["y"].copy()
    if oob == "zero":
        rows = wanted.T if name == "Gather of axis 1" else wanted
        rows[nearest != given] = 0
        assert not wanted.all()
    np.testing.assert_array_equal(found, wanted)


def test_nothing_can_be_looked_up_in_an_empty_axis() -> None:
    text = "g (float[N,3] x, int64[M] i) => (float[a] y) { y = Gather(x, i) }"
    empty = {"x": ramp(0, 3), "i": np.array([0])}
    for oob in ("error", "clamp"):
        with pytest.raises(IdError):
            Compiled(parse(text), oob)(empty)  # type: ignore[arg-type]
    assert Compiled(parse(text), "zero")(empty)["y"].tolist() == [[0, 0, 0]]


def test_each_axis_of_a_tuple_is_checked() -> None:
    text = "g (float[2,N] x, int64[M,2] i) => (float[a] y) { y = GatherND(x, i) }"
    x = ramp(2, 5)
    compiled = Compiled(parse(text))
    assert compiled({"x": x, "i": np.array([[1, 4], [-2, -5]])})["y"].tolist() == [10, 1]
    for bad, size in [([2, 0], "2"), ([0, 5], "N"), ([-3, 0], "2")]:
        with pytest.raises(IdError, match=rf"\(axis of size {size}\)"):
            compiled({"x": x, "i": np.array([bad])})
    zeroed = Compiled(parse(text), "zero")({"x": x, "i": np.array([[2, 0], [0, 2**62], [1, 1]])})
    assert zeroed["y"].tolist() == [0, 0, 7]


def test_lengths_out_of_range() -> None:
    text = """g (float[N,4] x, int64[N] n) => (float[a] y)
        { y = ReverseSequence<time_axis=1, batch_axis=0>(x, n) }"""
    x, compiled = ramp(2, 4), Compiled(parse(text))
    for bad in (5, -1, *FAR):
        with pytest.raises(IdError, match=r"ReverseSequence 'y' \(axis of size 4\)"):
            compiled({"x": x, "n": np.array([1, bad])})
    found = Compiled(parse(text), "clamp")({"x": x, "n": np.array([2**63 - 1, -(2**63)])})["y"]
    np.testing.assert_array_equal(found, [x[0, ::-1], x[1]])


# ------------------------------------------------------------------- sizes at odds


def test_indices_larger_than_the_data() -> None:
    text = "g (float[N,3] x, int64[M,K] i) => (float[a] y) { y = GatherElements(x, i) }"
    with pytest.raises(InputError, match="GatherElements 'y': its indices are larger"):
        Compiled(parse(text))({"x": ramp(2, 3), "i": ids(0, 2, 2, 4)})


def test_batches_that_disagree() -> None:
    text = "g (float[N,3] x, int64[M,1] i) => (float[a] y) { y = GatherND<batch_dims=1>(x, i) }"
    with pytest.raises(InputError, match="GatherND 'y': its data and indices disagree"):
        Compiled(parse(text))({"x": ramp(2, 3), "i": ids(0, 3, 3, 1)})


def test_tuples_of_unknown_length_are_refused() -> None:
    graph = parse("g (float[N,3] x, int64[M,K] i) => (float y) { y = GatherND(x, i) }")
    with pytest.raises(UnsupportedOpError, match="known only at run time"):
        Compiled(graph)
