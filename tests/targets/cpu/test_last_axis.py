"""Softmax and places of extremes along the last axis, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.targets.cpu import last_axis
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

OPS = {"Softmax": "float", "LogSoftmax": "float", "ArgMax": "int64", "ArgMin": "int64"}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of kernels of rows that are made."""
    found: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        make = getattr(last_axis, name)
        return lambda *args, **kwargs: found.append(name) or make(*args, **kwargs)

    for name in ("softmax", "extreme_place"):
        monkeypatch.setattr(last_axis, name, noting(name))
    return found


def graph_of(op: str, shape: str, attributes: str, dtype: str = "float") -> Graph:
    result = dtype if OPS[op] == "float" else "int64"
    return parse(f"({dtype}[{shape}] x) => ({result}[] y) {{ y = {op}<{attributes}>(x) }}")


def check(graph: Graph, tolerance: float = 1e-6, columns: tuple[int, ...] = (1,)) -> None:
    """Three rows; `columns` of them where their number is not known."""
    kernel = Compiled(graph)
    for seed, size in enumerate(columns * 2):
        feeds = random_inputs(graph, {"N": 3, "M": size}, seed)
        wanted = run_onnxruntime(graph, feeds)["y"]
        # exponentials and sums that are rounded elsewhere
        np.testing.assert_allclose(kernel(feeds)["y"], wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", ["N,37", "N,M", "3,N,64", "M", "2,N,M"])
def test_along_the_last_axis(op: str, shape: str, built: list[str]) -> None:
    graph = graph_of(op, shape, "axis=-1")
    check(graph, columns=(1, 5, 40) if "M" in shape else (1,))
    assert set(built) == {"softmax" if OPS[op] == "float" else "extreme_place"}


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "dtype"),
    [
        *((op, "N,3,5", "axis=1", "float") for op in OPS),
        *((op, "N,20", "axis=-1", "double") for op in OPS),
        ("ArgMax", "N,15", "axis=-1", "float"),
        ("ArgMin", "N,20", "axis=-1", "int32"),
    ],
)
def test_others_stay(op: str, shape: str, attributes: str, dtype: str, built: list[str]) -> None:
    check(graph_of(op, shape, attributes, dtype))
    assert not built


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("attributes", ["keepdims=0", "keepdims=0, select_last_index=1"])
def test_places_of_ties(op: str, attributes: str, built: list[str]) -> None:
    graph = graph_of(op, "N,4,33", f"axis=2, {attributes}")
    feeds = random_inputs(graph, {"N": 7})
    feeds["x"] = np.round(feeds["x"])
    wanted = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_array_equal(Compiled(graph)(feeds)["y"], wanted)
    assert built


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_float16_is_computed_in_float32(op: str, built: list[str]) -> None:
    # float16 has 11 bits
    check(graph_of(op, "N,50", "axis=-1", "float16"), tolerance=2e-3)
    assert built


def test_all_of_a_row_masked(built: list[str]) -> None:
    graph = graph_of("Softmax", "N,20", "axis=-1")
    feeds = random_inputs(graph, {"N": 3})
    feeds["x"][1] = -np.inf
    feeds["x"][2, 4:] = -np.inf
    found, wanted = Compiled(graph)(feeds)["y"], run_onnxruntime(graph, feeds)["y"]
    assert np.isnan(wanted[1]).all()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
