"""Reductions over the last axes, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.targets.cpu import reductions
from graphopt.targets.cpu.kernels.reductions import REDUCTIONS
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The lengths of rows that kernels are made for."""
    found: list[int | None] = []
    make = reductions.reduce_rows

    def noting(op: str, dim: int | None, lanes: int) -> Any:
        found.append(dim)
        return make(op, dim, lanes)

    monkeypatch.setattr(reductions, "reduce_rows", noting)
    return found


def graph_of(op: str, shape: str, axes: str, keepdims: int = 0, dtype: str = "float") -> Graph:
    count = len(axes.split(","))
    return parse(f"""({dtype}[{shape}] x) => ({dtype}[] y) <int64[{count}] a = {{{axes}}}>
        {{ y = {op}<keepdims={keepdims}>(x, a) }}""")


def check(graph: Graph, feeds: dict[str, np.ndarray], compiled: Compiled | None = None) -> None:
    wanted = run_onnxruntime(graph, feeds)["y"]
    found = (compiled or Compiled(graph))(feeds)["y"]
    assert found.shape == wanted.shape
    # sums of at most 1320 elements in another order
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize(
    ("shape", "axes", "dim"),
    [
        ("N,8,33", "1,2", 264),
        ("N,3,21", "-1", 21),
        ("N,150", "1", 150),  # several vectors side by side, one of them alone, and a rest
        ("N,9", "1", 9),
        ("N,M", "1", None),
        ("N,3,1,M", "1,3", None),
    ],
)
def test_the_last_axes(op: str, shape: str, axes: str, dim: int, built: list) -> None:
    graph = graph_of(op, shape, axes)
    compiled = Compiled(graph)
    assert built == [dim]
    for size in (1, 5, 40) if dim is None else (1,):
        feeds = random_inputs(graph, {"N": 11, "M": size})
        check(graph, feeds, compiled)
        together = compiled(feeds)["y"]
        np.testing.assert_array_equal(compiled({"x": feeds["x"][4:5]})["y"], together[4:5])
        assert compiled({"x": feeds["x"][:0]})["y"].shape == (0, *together.shape[1:])


@pytest.mark.parametrize("op", REDUCTIONS)
def test_nan_and_infinities_spread(op: str, built: list) -> None:
    graph = graph_of(op, "N,100", "1", keepdims=1)
    places = [0, 17, 63, 95, 99]
    count = len(places)
    feeds = random_inputs(graph, {"N": 3 * count + 1})
    for k, number in enumerate((np.nan, np.inf, -np.inf)):
        feeds["x"][range(k * count, (k + 1) * count), places] = number
    found, wanted = Compiled(graph)(feeds)["y"], run_onnxruntime(graph, feeds)["y"]
    assert built and np.isnan(found[:count]).all()  # where ONNX Runtime's ReduceMax may lose it
    np.testing.assert_allclose(found[count:], wanted[count:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"])
def test_nothing_is_zero(op: str, built: list) -> None:
    graph = graph_of(op, "N,M", "1")
    assert not Compiled(graph)({"x": np.zeros((3, 0), np.float32)})["y"].any()
    assert built


def test_all_of_a_batch(built: list) -> None:
    graph = graph_of("ReduceSum", "N,3,5", "0,1,2")
    check(graph, random_inputs(graph, {"N": 88}))
    assert built == [None]


@pytest.mark.parametrize(
    ("op", "shape", "axes", "dtype"),
    [
        ("ReduceSum", "N,20,4", "1", "float"),  # a middle axis
        ("ReduceMax", "N,20,4,9", "1,3", "float"),
        ("ReduceSum", "N,20", "1", "double"),
        ("ReduceMin", "N,20", "1", "int32"),
        ("ReduceSum", "N,3,2", "1,2", "float"),  # short
    ],
)
def test_others_stay(op: str, shape: str, axes: str, dtype: str, built: list) -> None:
    graph = graph_of(op, shape, axes, dtype=dtype)
    check(graph, random_inputs(graph, {"N": 3}))
    assert not built
