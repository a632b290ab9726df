"""Writes to positions found in data against ONNX Runtime, and what an id out of range does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from agreement import agree
from onnx.reference import ReferenceEvaluator

from graphopt.errors import IdError, InputError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.testing import Compiled, parse

RNG = np.random.default_rng(5)
FAR = [-(2**63), -(2**63) + 1, -(2**31) - 1, 2**31, 2**62, 2**63 - 1]
REDUCTIONS = ["none", "add", "mul", "max", "min"]


def ramp(*shape: int) -> np.ndarray:
    return np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)


def ids(low: int, high: int, *shape: int) -> np.ndarray:
    return RNG.integers(low, high, shape)


# ------------------------------------------------------------------ valid positions


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_elements(reduction: str) -> None:
    """Many updates meet in one place, so that their order shows."""
    agree(
        f"""g (float[N,3] x, int64[M,2] i, float[M,2] u) => (float[a] y)
            {{ y = ScatterElements<axis=0, reduction="{reduction}">(x, i, u) }}""",
        *({"x": ramp(n, 3), "i": ids(-n, n, n, 2), "u": -ramp(n, 2) / 7} for n in (1, 2)),
    )


@pytest.mark.parametrize("axis", [1, -1])
def test_scatter_elements_along_an_inner_axis(axis: int) -> None:
    agree(
        f"""g (float[N,4] x, int32[N,M] i, float[N,M] u) => (float[a] y)
            {{ y = ScatterElements<axis={axis}>(x, i, u) }}""",
        *(
            {"x": ramp(n, 4), "i": ids(-4, 4, n, m).astype(np.int32), "u": -ramp(n, m)}
            for n, m in [(3, 6), (1, 0), (0, 2)]
        ),
    )


def test_scatter_before_it_was_renamed() -> None:
    text = """g (float[N,3] x, int64[N,1] i, float[N,1] u) => (float[a] y)
        { y = Scatter<axis=1>(x, i, u) }"""
    agree(text, {"x": ramp(2, 3), "i": ids(0, 3, 2, 1), "u": -ramp(2, 1)}, opset=9)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("depth", [1, 2])
def test_scatter_nd(reduction: str, depth: int) -> None:
    inner = ",3" if depth == 1 else ""
    agree(
        f"""g (float[N,3] x, int64[M,{depth}] i, float[M{inner}] u) => (float[a] y)
            {{ y = ScatterND<reduction="{reduction}">(x, i, u) }}""",
        *(
            {"x": ramp(n, 3), "i": ids(-n, n, m, depth), "u": -ramp(m, *[3] * (2 - depth)) / 7}
            for n, m in [(2, 5), (3, 0)]
        ),
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int8", "uint16", "uint64"])
@pytest.mark.parametrize("reduction", ["add", "max"])
def test_scatter_of_every_width(dtype: str, reduction: str) -> None:
    name = {"float64": "double"}.get(dtype, dtype)
    graph = parse(
        f"""g ({name}[4] x, int64[M] i, {name}[M] u) => ({name}[4] y)
            {{ y = ScatterElements<reduction="{reduction}">(x, i, u) }}"""
    )
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    feeds = {
        "x": np.arange(4).astype(numpy_dtype),
        "i": np.array([3, 1, -1, 1]),
        "u": np.array([2, 3, 7, 1]).astype(numpy_dtype),
    }
    found = Compiled(graph)(feeds)["y"]
    assert found.dtype == numpy_dtype
    wanted = {"add": [0, 5, 2, 12], "max": [0, 3, 2, 7]}[reduction]
    assert found.astype(np.int64).tolist() == wanted


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_tensor_scatter(mode: str) -> None:
    """ONNX Runtime has no such op: the ONNX project's own evaluator stands in."""
    graph = parse(
        f"""g (float[N,2,5,3] cache, float[N,2,2,3] new, int64[N] at) => (float[N,2,5,3] y)
            {{ y = TensorScatter<mode="{mode}">(cache, new, at) }}""",
        24,
    )
    compiled, reference = Compiled(graph), ReferenceEvaluator(onnx_io.to_proto(graph))
    for at in ([0, 3], [2, 1], [3, 4 if mode == "circular" else 3]):
        feeds = {"cache": ramp(2, 2, 5, 3), "new": -ramp(2, 2, 2, 3), "at": np.array(at)}
        np.testing.assert_array_equal(compiled(feeds)["y"], reference.run(None, feeds)[0])


def test_the_data_stay_as_they_were() -> None:
    text = "g (float[3] x, int64[1] i, float[1] u) => (float[3] y) { y = ScatterElements(x, i, u) }"
    x = ramp(3)
    Compiled(parse(text))({"x": x, "i": np.array([0]), "u": np.array([9], np.float32)})
    assert x.tolist() == [1, 2, 3]


# -------------------------------------------------------------------- out of range

WRITES = {
    "ScatterElements": "g (float[N] x, int64[M] i, float[M] u) => (float[a] y) "
    "{ y = ScatterElements(x, i, u) }",
    "ScatterND": "g (float[N] x, int64[M] i, float[M] u) => (float[a] y) <int64[2] s = {-1, 1}> "
    "{ j = Reshape(i, s) y = ScatterND(x, j, u) }",
}


@pytest.mark.parametrize("op", WRITES)
def test_an_id_out_of_range_is_an_error(op: str) -> None:
    compiled = Compiled(parse(WRITES[op]))
    for bad in [5, -6, *FAR]:
        with pytest.raises(IdError, match=rf"{op} 'y' \(axis of size N\)"):
            compiled({"x": ramp(5), "i": np.array([0, bad]), "u": -ramp(2)})


@pytest.mark.parametrize("op", WRITES)
def test_an_id_out_of_range_is_tamed(op: str) -> None:
    given = np.array([2, -5, 5, -6, *FAR])
    feeds = {"x": ramp(5), "i": given, "u": -ramp(len(given))}
    nearest = np.clip(given, -5, 4)
    clamped, dropped = ramp(5), ramp(5)
    for at, near, value in zip(given, nearest, feeds["u"]):
        clamped[near] = value
        if at == near:
            dropped[at] = value
    for oob, wanted in (("clamp", clamped), ("zero", dropped)):
        found = Compiled(parse(WRITES[op]), oob)(feeds)["y"]  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_a_cache_is_written_within_its_length(mode: str) -> None:
    text = f"""g (float[N,1,4,1] cache, float[N,1,2,1] new, int64[N] at) => (float[N,1,4,1] y)
        {{ y = TensorScatter<mode="{mode}">(cache, new, at) }}"""
    graph = parse(text, 24)
    bad = [-1, 4, *FAR] + ([3] if mode == "linear" else [])
    compiled = Compiled(graph)
    cache, new = ramp(1, 1, 4, 1), -ramp(1, 1, 2, 1)
    for at in bad:
        with pytest.raises(IdError, match=r"TensorScatter 'y' \(axis of size 4\)"):
            compiled({"cache": cache, "new": new, "at": np.array([at])})
    feeds = {"cache": cache, "new": new, "at": np.array([2**63 - 1])}
    assert Compiled(graph, "zero")(feeds)["y"].ravel().tolist() == [1, 2, 3, 4]
    nearest = [1, 2, -1, -2] if mode == "linear" else [-2, 2, 3, -1]
    assert Compiled(graph, "clamp")(feeds)["y"].ravel().tolist() == nearest


# ------------------------------------------------------------------- sizes at odds


def test_updates_that_do_not_fit() -> None:
    inputs = "float[N] x, int64[M] i, float[K] u"
    elements = f"g ({inputs}) => (float[a] y) {{ y = ScatterElements(x, i, u) }}"
    feeds = {"x": ramp(5), "i": np.array([0, 1]), "u": ramp(1)}
    with pytest.raises(InputError, match="ScatterElements 'y': its indices are larger"):
        Compiled(parse(elements))(feeds)
    tuples = "g (float[N] x, int64[M,1] i, float[K] u) => (float[a] y) { y = ScatterND(x, i, u) }"
    with pytest.raises(InputError, match="ScatterND 'y': its updates do not fit its indices"):
        Compiled(parse(tuples))({**feeds, "i": np.array([[0], [1]])})


def test_sums_of_conditions_are_refused() -> None:
    text = """g (bool[N] x, int64[M] i, bool[M] u) => (bool[a] y)
        { y = ScatterElements<reduction="add">(x, i, u) }"""
    with pytest.raises(UnsupportedOpError, match="the reduction 'add' of bool"):
        Compiled(parse(text))
