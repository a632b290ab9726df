"""Layers read the operands of concatenations where these are."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.targets.cpu.joined_data import data_of
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

HEAD = """(float[N,9] x, float[N,{inner}7] a, float[N,{inner}1] b, float[N,{inner}20] c)
    => (float[] y{more}) <float[28,33] w, float[28,2] h, float[3,33] s, float[8,33] t,
     float[31,33] u, float[20,33] v, float[41,5] q, int64[1] two = {{2}}, int64[1] five = {{5}},
     int64[1] one = {{1}}> {{ {body} }}"""
JOINED = "j = Concat<axis=-1>(a, b, c) "
COLUMNS = "k = Slice(x, two, five, one) "
READ = {
    "wide": (JOINED + "m = MatMul(j, w) y = Relu(m)", "", [[7, 1, 20]]),
    "narrow": (JOINED + "m = MatMul(j, h) y = Sigmoid(m)", "", [[7, 1, 20]]),
    "rows of several axes": (JOINED + "y = MatMul(j, w)", "3,", [[7, 1, 20]]),
    "columns": (COLUMNS + "y = MatMul(k, s)", "", [[3]]),
    "by two layers": (JOINED + "m = MatMul(j, w) n = MatMul(j, h) y = Concat<axis=1>(m, n)", "",
                      [[7, 1, 20], [7, 1, 20]]),
    "parts of parts": (
        "i = Concat<axis=1>(a, b) z = MatMul(i, t) j = Concat<axis=1>(i, c) m = MatMul(j, w)"
        " y = Add(m, z)", "", [[7, 1], [7, 1, 20]]),
    "one layer by another": (
        "i = Concat<axis=1>(a, b) m = MatMul(i, t) n = Relu(m) j = Concat<axis=1>(i, n)"
        " y = MatMul(j, q)", "", [[7, 1], [7, 1, 33]]),
    "columns among them": (COLUMNS + "j = Concat<axis=1>(k, a, b, c) y = MatMul(j, u)", "",
                           [[3, 7, 1, 20]]),
}  # fmt: skip
STAY = {
    "read elsewhere": (JOINED + "m = MatMul(j, w) y = Relu(m) o = Exp(j)", ""),
    "an output": (JOINED.replace("j =", "o =") + "y = MatMul(o, w)", ""),
    "along another axis": ("j = Concat<axis=0>(c, c) y = MatMul(j, v)", ""),
    "too many": ("j = Concat<axis=1>(a, a, a, b, b, b, b, b, b, b) y = MatMul(j, w)", ""),
}


def graph_of(body: str, inner: str) -> Graph:
    more = ", float[] o" if "o = " in body else ""
    return parse(HEAD.format(inner=inner, more=more, body=body))


def layers(source: Graph) -> tuple[list[list[int]], list[str]]:
    legal = source.clone()
    legalize(legal, lanes=8)
    found = [[part.width for _, part in data_of(n)] for n in legal.nodes if n.op_type == "Dense"]
    return found, [node.op for node in legal.nodes if node.op in ("Concat", "Slice")]


@pytest.mark.parametrize("name", READ)
def test_parts_are_read_in_place(name: str) -> None:
    body, inner, wanted = READ[name]
    source = graph_of(body, inner)
    found, left = layers(source)
    assert sorted(found) == sorted(wanted)
    assert left == (["Concat"] if name == "by two layers" else [])
    compiled = Compiled(source)
    feeds = random_inputs(source, {"N": 21})
    together = compiled(feeds)["y"]
    expected = run_onnxruntime(source, feeds)["y"]  # sums of 31 products in another order
    np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-5)
    alone = compiled({key: array[4:5] for key, array in feeds.items()})["y"]
    np.testing.assert_array_equal(alone, together[4:5])


@pytest.mark.parametrize("name", STAY)
def test_what_others_read_is_joined(name: str) -> None:
    source = graph_of(*STAY[name])
    found, left = layers(source)
    assert all(len(widths) == 1 for widths in found)
    assert left == ["Concat"]
    feeds = random_inputs(source, {"N": 3})
    expected = run_onnxruntime(source, feeds)["y"]
    np.testing.assert_allclose(Compiled(source)(feeds)["y"], expected, rtol=1e-5, atol=1e-5)
