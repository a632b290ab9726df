"""Layer normalization of rows, against ONNX Runtime; what else there is takes the general way."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime


def graph_of(shape: str, width: int, op: str) -> Graph:
    return parse(
        f"""(float[{shape}] x) => (float[] y)
        <float[{width}] g, float[{width}] b, float[5,{width}] g2> {{ y = {op} }}"""
    )


def is_legalized(graph: Graph) -> bool:
    copy = graph.clone()
    legalize(copy, lanes=16)
    return [node.op for node in copy.nodes] == [f"{DOMAIN}::LayerNorm"]


@pytest.mark.parametrize("width", [1, 2, 3, 8, 13, 16, 31, 64, 65, 200])
@pytest.mark.parametrize(
    "op", ["LayerNormalization(x, g, b)", "LayerNormalization<epsilon=0.1>(x, g)"]
)
def test_rows(width: int, op: str) -> None:
    graph = graph_of(f"N,5,{width}", width, op)
    assert is_legalized(graph)
    kernel = Compiled(graph)
    for batch in (0, 1, 7):
        feeds = random_inputs(graph, {"N": batch})
        feeds["x"] = feeds["x"] * 3 + 7
        wanted = run_onnxruntime(graph, feeds)["y"]
        # sums of up to 200 numbers near 10 in another order
        np.testing.assert_allclose(kernel(feeds)["y"], wanted, rtol=1e-4, atol=2e-5)


def test_nan_stays_in_its_row() -> None:
    graph = graph_of("N,20", 20, "LayerNormalization(x, g, b)")
    feeds = random_inputs(graph, {"N": 3})
    feeds["x"][1, 18] = np.nan
    found = np.isnan(Compiled(graph)(feeds)["y"])
    assert found[1].all() and not found[[0, 2]].any()


@pytest.mark.parametrize(
    "op",
    [
        "LayerNormalization<axis=1>(x, g2)",
        "LayerNormalization(x, g, g2)",
    ],
)
def test_others_stay(op: str) -> None:
    graph = graph_of("N,5,8", 8, op)
    assert not is_legalized(graph)
    feeds = random_inputs(graph, {"N": 3})
    wanted = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(Compiled(graph)(feeds)["y"], wanted, rtol=1e-5, atol=1e-6)


ROOT_MEAN_SQUARE = {
    "torch": "q = Pow(x, two) m = ReduceMean(q, k) e = Add(m, eps) d = Sqrt(e) r = Div(one, d)"
    " y = Mul(x, r)",
    "dynamo": "q = Pow(x, two) m = ReduceMean(q, k) e = Add(m, eps) d = Sqrt(e)"
    " r = Reciprocal(d) y = Mul(r, x)",
    "by hand": "q = Mul(x, x) m = ReduceMean(q, k) e = Add(eps, m) d = Sqrt(e) y = Div(x, d)",
}


def root_mean_square(body: str) -> Graph:
    return parse(
        f"""(float[N,3,20] x) => (float[] y) <float two = {{2}}, float one = {{1}},
        float three = {{3}}, float eps = {{1e-5}}, int64[1] k = {{-1}}, int64[1] k1 = {{1}}>
        {{ {body} }}"""
    )


@pytest.mark.parametrize("form", ROOT_MEAN_SQUARE)
def test_root_mean_square(form: str) -> None:
    graph = root_mean_square(ROOT_MEAN_SQUARE[form])
    assert is_legalized(graph)
    feeds = random_inputs(graph, {"N": 4})
    feeds["x"] = feeds["x"] + 2  # a mean that would be missed
    wanted = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(Compiled(graph)(feeds)["y"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "old", "new"),
    [("torch", "two)", "three)"), ("torch", "(one", "(three"), ("by hand", "(q, k)", "(q, k1)")],
)
def test_other_norms_stay(form: str, old: str, new: str) -> None:
    assert old in ROOT_MEAN_SQUARE[form]
    assert not is_legalized(root_mean_square(ROOT_MEAN_SQUARE[form].replace(old, new)))
