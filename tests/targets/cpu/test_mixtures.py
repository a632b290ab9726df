"""Weighted sums of experts read these where they are."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis.cost import node_cost
from graphopt.ir.graph import Graph
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.legalize import legalize
from graphopt.targets.cpu.mixtures import OP_TYPE
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

HEAD = """(float[N,20] a, float[N,20] b, float[N,20] c, float[N,60] w, float[N,2,3,20] q,
     float[N,3] g, float[N,5] h, float[N,2,3] p, float[N,9] l, float[N,9,20] m, float[N,12] d,
     float[N,33] i, float[N,33,4] j, float[N,1] k)
    => ({outputs}) <float[1,3,1] mean, int64[1] zero = {{0}}, int64[1] one = {{1}},
     int64[1] two = {{2}}, int64[1] five = {{5}}, int64[1] half = {{20}}, int64[1] most = {{40}},
     int64[3] up = {{-1, 3, 20}}, int64[3] thin = {{-1, 3, 1}}, int64[3] fives = {{-1, 5, 20}},
     int64[3] across = {{-1, 3, 28}}>
    {{ {body} }}"""
STACK = """a$ = Unsqueeze(a, one) b$ = Unsqueeze(b, one) c$ = Unsqueeze(c, one)
    s$ = Concat<axis=1>(a$, b$, c$) """
FLAT = "f$ = Concat<axis=1>(a, b, c) s$ = Reshape(f$, up) "
GATE = "g$ = Softmax(g) u$ = Unsqueeze(g$, two) "
SUM = "t$ = Mul(s$, u$) y$ = ReduceSum<keepdims=0>(t$, one)"
ROW = "g$ = Softmax(g) u$ = Unsqueeze(g$, one) y$ = MatMul(u$, s$)"
# By name: the ops, and of the Mixture its matrices and whether it computes Softmax.
FORMS = {
    "stacked": (STACK + GATE + SUM, 4, True),
    "joined": (FLAT + GATE + SUM, 4, True),
    "by a product": (STACK + ROW, 4, True),
    "shares first": (FLAT + GATE + "t$ = Mul(u$, s$) y$ = ReduceSum(t$, one)", 4, True),
    "a column of shares": (
        STACK + "u$ = Unsqueeze(g, two) v$ = Softmax<axis=1>(u$) t$ = Mul(s$, v$)"
        " y$ = ReduceSum<keepdims=0>(t$, one)", 4, True),
    "other shares": (STACK + "g$ = Sigmoid(g) u$ = Unsqueeze(g$, two)" + SUM, 4, False),
    "one tensor": ("g$ = Softmax(l) u$ = Unsqueeze(g$, one) y$ = MatMul(u$, m)", 2, True),
    "of further axes": (
        "g$ = Softmax(p) u$ = Unsqueeze(g$, zero) v$ = Squeeze(u$, zero) x$ = Unsqueeze(v$, two)"
        " y$ = MatMul(x$, q)", 2, True),
    "stacks of stacks": (
        "z$ = Concat<axis=1>(w, a) f$ = Concat<axis=1>(z$, b) s$ = Reshape(f$, fives)"
        " g$ = Softmax(h) u$ = Unsqueeze(g$, two)" + SUM, 4, True),
    "columns of wider ones": (
        "i$ = Slice(w, half, most, one) j$ = Slice(l, two, five, one) a$ = Unsqueeze(i$, one)"
        " b$ = Unsqueeze(a, one) s$ = Concat<axis=1>(a$, b$, a$) g$ = Softmax(j$)"
        " u$ = Unsqueeze(g$, two)" + SUM, 3, True),
    "stacked outside the batch": (
        "a$ = Unsqueeze(a, zero) b$ = Unsqueeze(b, zero) c$ = Unsqueeze(c, zero)"
        " s$ = Concat<axis=0>(a$, b$, c$) g$ = Softmax(g) h$ = Transpose<perm=[1,0]>(g$)"
        " u$ = Unsqueeze(h$, two) t$ = Mul(s$, u$) y$ = ReduceSum<keepdims=0>(t$, zero)", 4, True),
    "shares in another order": (
        FLAT + "g$ = Softmax(g) h$ = Transpose<perm=[1,0]>(g$) u$ = Reshape(h$, thin)" + SUM,
        4, False),
    "normalized over the batch": (STACK + GATE.replace("(g)", "<axis=0>(g)") + SUM, 4, False),
    "shares that are read elsewhere": (
        STACK + GATE + "r$ = Neg(g$) n$ = ReduceSum<keepdims=0>(r$, one)"
        " k$ = Unsqueeze(n$, one) t$ = Mul(s$, u$) v$ = ReduceSum<keepdims=0>(t$, one)"
        " y$ = Add(v$, k$)", 4, False),
}  # fmt: skip
_ACROSS_SAMPLES = ("shares in another order", "normalized over the batch")
STAY = {
    "one expert": "s$ = Unsqueeze(a, one) g$ = Softmax(k) u$ = Unsqueeze(g$, two) " + SUM,
    "rows of several experts": "f$ = Concat<axis=1>(a, d, b, d, c) s$ = Reshape(f$, across) "
    + GATE + SUM,
    "shares by column": STACK + "u$ = Unsqueeze(b, one) t$ = Mul(s$, u$)"
    " y$ = ReduceSum<keepdims=0>(t$, one)",
    "a sum along the rows": STACK + GATE + "t$ = Mul(s$, u$) y$ = ReduceSum(t$, two)",
    "a sum over all": STACK + GATE + "t$ = Mul(s$, u$) y$ = ReduceSum<keepdims=0>(t$)",
    "constant shares": STACK + "t$ = Mul(s$, mean) y$ = ReduceSum<keepdims=0>(t$, one)",
    "shares of all samples": STACK + "r$ = ReduceMean(s$, zero) u$ = ReduceMean(r$, two)"
    " t$ = Mul(s$, u$) y$ = ReduceSum<keepdims=0>(t$, one)",
    "nothing joined": "g$ = Sigmoid(l) u$ = Unsqueeze(g$, one) y$ = MatMul(u$, m)",
    "many": "g$ = Softmax(i) u$ = Unsqueeze(g$, one) y$ = MatMul(u$, j)",
    "short rows": "f$ = Concat<axis=1>(k, k, k) s$ = Unsqueeze(f$, two) " + GATE + SUM,
    "many products": STACK + "g$ = Softmax(p) y$ = MatMul(g$, s$)",
}  # fmt: skip


def graph_of(*bodies: str) -> Graph:
    body = " ".join(body.replace("$", str(k)) for k, body in enumerate(bodies))
    outputs = ", ".join(f"float[] y{k}" for k in range(len(bodies)))
    return parse(HEAD.format(outputs=outputs, body=body))


def legalized(graph: Graph) -> Graph:
    copy = graph.clone()
    legalize(copy, lanes=8)
    return copy


def mixtures(graph: Graph) -> list[tuple[int, bool]]:
    """Of each the number of matrices, and whether it computes Softmax."""
    found = [node for node in legalized(graph).nodes if node.op == f"{DOMAIN}::{OP_TYPE}"]
    return [(len(node.inputs), node.attrs["softmax"]) for node in found]


@pytest.fixture(scope="module")
def source() -> Graph:
    return graph_of(*(body for body, _, _ in FORMS.values()))


@pytest.fixture(scope="module")
def compiled(source: Graph) -> Compiled:
    return Compiled(source)


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    body, matrices, softmax = FORMS[name]
    graph = graph_of(body)
    assert mixtures(graph) == [(matrices, softmax)]
    left = {node.op for node in legalized(graph).nodes}
    assert not left & {"Concat", "Mul", "MatMul"}
    assert ("Softmax" in left) == (not softmax and "Softmax" in body)


def test_results(source: Graph, compiled: Compiled) -> None:
    feeds = random_inputs(source, {"N": 7})
    together, expected = compiled(feeds), run_onnxruntime(source, feeds)
    for key, name in enumerate(FORMS):
        # Sums of at most 9 products near 1, in another order.
        np.testing.assert_allclose(
            together[f"y{key}"], expected[f"y{key}"], rtol=1e-5, atol=1e-6, err_msg=name
        )
    for rows in (slice(4, 5), slice(0, 0)):
        part = compiled({name: array[rows] for name, array in feeds.items()})
        for key, array in part.items():
            if list(FORMS)[int(key[1:])] not in _ACROSS_SAMPLES:
                np.testing.assert_array_equal(array, together[key][rows])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_and_infinity(source: Graph, compiled: Compiled) -> None:
    feeds = random_inputs(source, {"N": 6})
    inf, nan = np.inf, np.nan
    feeds["g"][:] = [
        [nan, 0, 0], [0, inf, 1], [-inf, -inf, -inf], [-inf, 0, 1], [0, 0, -200], [3e38, 0, -3e38],
    ]  # fmt: skip
    feeds["a"][3:, 2], feeds["c"][4, 5] = inf, nan
    actual, expected = compiled(feeds), run_onnxruntime(source, feeds)
    for key, name in enumerate(FORMS):
        np.testing.assert_allclose(
            actual[f"y{key}"], expected[f"y{key}"], rtol=1e-5, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("name", STAY)
def test_others_stay(name: str) -> None:
    assert not mixtures(graph_of(STAY[name]))


def test_gates_share_experts() -> None:
    """All read the experts where they are, and nothing joins these."""
    second = "e$ = Neg(g) " + GATE.replace("(g)", "(e$)") + SUM.replace("s$", "s0")
    graph = graph_of(STACK + GATE + SUM, second)
    assert mixtures(graph) == [(4, True), (4, True)]
    assert "Concat" not in {node.op for node in legalized(graph).nodes}


def test_costs() -> None:
    """Of a wide matrix only the columns count."""
    legal = legalized(graph_of(FORMS["columns of wider ones"][0]))
    (node,) = [node for node in legal.nodes if node.op == f"{DOMAIN}::{OP_TYPE}"]
    cost = node_cost(node).at({"N": 10})
    assert cost is not None
    assert (cost.read, cost.written) == (4 * 10 * (3 * 20 + 3), 4 * 10 * 20)
    assert cost.flops == 10 * (2 * 60 + 5 * 3)
