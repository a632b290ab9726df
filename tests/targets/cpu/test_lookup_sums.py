"""Rows of several fields are added up as they are looked up."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis.cost import node_cost
from graphopt.ir.graph import Graph
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

HEAD = """(int64[N] i, int64[N,3] m, float[N,2] d, float[N,1,4] e) => (float[] y{more})
    <float[7,1] t, float[5,1] u, float[7,4] v, float[5,4] w, float[7,3] s, int8[7,4] q,
     float[7] scales, int64[1] one = {{1}}, int64[1] last = {{-1}}, int64[3] up = {{-1, 1, 4}},
     int64[3] thin = {{-1, 1, 3}}, int64[2] both = {{1, 2}}> {{ a = Gather(t, i) {body} }}"""
LINEAR = "b = Gather(u, m) f = Flatten(b) c = Concat<axis=1>(a, f, d) "
FIELDS = "g = Gather(v, i) h = Reshape(g, up) k = Gather(w, m) c = Concat<axis=1>(h, k, e) "
CODES = "g = graphopt.QuantizedLookup<bits=8>(q, scales, i) h = Reshape(g, up) "
SUMS = {
    "numbers": LINEAR + "y = ReduceSum(c, one)",
    "numbers apart": """b = Gather(u, i) g = Unsqueeze(a, one) h = Unsqueeze(b, one)
        c = Concat<axis=-1>(g, h) y = ReduceSum<keepdims=0>(c, last)""",
    "rows": FIELDS + "y = ReduceSum<keepdims=0>(c, one)",
    "codes": CODES + "c = Concat<axis=1>(h, e) y = ReduceSum(c, one)",
    "bags": """b = graphopt.EmbeddingBag<mode="mean">(u, m) c = Concat<axis=1>(a, b, d)
        y = ReduceSum(c, last)""",
    "bags of rows": """b = graphopt.EmbeddingBag<mode="sum">(v, m) h = Reshape(b, up)
        c = Concat<axis=1>(h, e) y = ReduceSum(c, one)""",
    "and joined": LINEAR + "r = ReduceSum(c, one) b2 = Gather(v, i) y = Concat<axis=1>(r, b2)",
}
STAY = {
    "numbers of rows": FIELDS + "y = ReduceSum<keepdims=0>(c, both)",
    "each row": FIELDS + "y = ReduceSum(c, last)",
    "over the batch": FIELDS + "z = Constant<value_ints=[0]>() y = ReduceSum(c, z)",
    "products": """b = Gather(u, i) p = Mul(a, b) c = Concat<axis=1>(p, d)
        y = ReduceSum(c, one)""",
    "read elsewhere": LINEAR + "y = ReduceSum(c, one) o = Neg(c)",
    "bags whose vectors overlap": """b = graphopt.EmbeddingBag<mode="sum">(s, m)
        h = Reshape(b, thin) g = Gather(s, i) k = Reshape(g, thin) c = Concat<axis=1>(h, k)
        y = ReduceSum(c, one)""",
}


def graph_of(body: str) -> Graph:
    return parse(HEAD.format(body=body, more=", float[] o" if "o = " in body else ""))


@pytest.mark.parametrize("name", SUMS)
def test_sums_are_looked_up(name: str) -> None:
    source = graph_of(SUMS[name])
    legal = source.clone()
    legalize(legal, lanes=8)
    assert not any(node.op == "ReduceSum" for node in legal.nodes)
    compiled = Compiled(source)
    for batch in (1, 20):
        feeds = random_inputs(source, {"N": batch})
        wanted = run_onnxruntime(source, feeds)["y"]
        # Sums of at most 20 numbers near 1, in another order.
        np.testing.assert_allclose(compiled(feeds)["y"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STAY)
def test_other_sums_stay(name: str) -> None:
    source = graph_of(STAY[name])
    legal = source.clone()
    legalize(legal, lanes=8)
    assert any(node.op == "ReduceSum" for node in legal.nodes)
    feeds = random_inputs(source, {"N": 3})
    wanted = run_onnxruntime(source, feeds)["y"]
    np.testing.assert_allclose(Compiled(source)(feeds)["y"], wanted, rtol=1e-5, atol=1e-5)


def test_a_sum_writes_what_is_left() -> None:
    legal = graph_of(SUMS["numbers"])
    legalize(legal, lanes=8)
    (node,) = legal.nodes
    cost = node_cost(node)
    assert cost is not None
    at = cost.at({"N": 10})
    # A row has 4 numbers of tables, 4 ids of 8 bytes and 2 values.
    assert (at.written, at.flops, at.read) == (40, 60, 10 * (4 * 4 + 4 * 8 + 2 * 4))
