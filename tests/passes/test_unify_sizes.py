"""Sizes that some op needs to be equal get one name."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ir.verifier import verify
from graphopt.passes.raise_pooling import RaisePooling
from graphopt.passes.unify_sizes import UnifySizes
from graphopt.pipeline.base import PassContext
from graphopt.testing import parse, random_inputs, run_onnxruntime


def graph_of(op_type: str, **attrs: int) -> Graph:
    """An op applied to inputs [N, 2] and [M, 2]."""
    graph = Graph("g", {"": 18})
    n, m = Sym.named("N"), Sym.named("M")
    a = graph.add_input("a", TensorType("float32", (n, 2)))
    b = graph.add_input("b", TensorType("float32", (m, 2)))
    graph.set_outputs([graph.insert(op_type, [a, b], attrs).output], ["y"])
    return graph


def test_what_is_concatenated_is_as_long() -> None:
    graph, ctx = graph_of("Concat", axis=1), PassContext()
    assert UnifySizes().run(graph, ctx)
    verify(graph)
    assert [str(v.type) for v in graph.inputs] == ["f32[N, 2]", "f32[N, 2]"]
    assert str(graph.outputs[0].type) == "f32[N, 4]"
    assert ctx.stats.hits == {"M = N": 1}
    assert not UnifySizes().run(graph, PassContext())


def test_what_is_added_is_as_long() -> None:
    graph = graph_of("Add")
    assert str(graph.outputs[0].type) == "f32[max(M, N), 2]"
    assert UnifySizes().run(graph, PassContext())
    assert str(graph.outputs[0].type) == "f32[N, 2]"


def test_what_is_appended_may_have_any_length() -> None:
    assert not UnifySizes().run(graph_of("Concat", axis=0), PassContext())


def test_sizes_may_differ_by_a_number() -> None:
    graph = Graph("g", {"": 18})
    n, m = Sym.named("N"), Sym.named("M")
    dense = graph.add_input("dense", TensorType("float32", (n, 2)))
    offsets = graph.add_input("offsets", TensorType("int64", (m,)))
    bags = graph.add_input("bags", TensorType("float32", (m - 1, 2)))
    joined = graph.insert("Concat", [dense, bags], {"axis": 1}).output
    graph.set_outputs([joined], ["y"])
    assert UnifySizes().run(graph, PassContext())
    assert str(offsets.type) == "i64[N + 1]"
    assert str(joined.type) == "f32[N, 4]"


BAGS = """(int64[N,3] ids, int64[M,2] others) => (float[] y)
    <float[9,4] t, int64 start = {{{start}}}, int64 k = {{3}}, int64[1] flat = {{-1}}> {{
    f = Reshape(ids, flat) m1 = Shape<end=1>(others) m = Squeeze(m1) n = Mul(m, k)
    o = Range(start, n, k) y = graphopt.EmbeddingBag<include_last_offset={last}>(t, f, o) }}"""


def test_bags_of_k_ids_are_as_many_as_rows_of_k_ids() -> None:
    """Exporters take the size of one of several inputs that are as long."""
    graph = parse(BAGS.format(start=0, last=0))  # which unifies sizes
    assert [str(v.type) for v in graph.inputs] == ["i64[N, 3]", "i64[N, 2]"]
    feeds = random_inputs(graph, {"N": 5})
    assert RaisePooling().run(graph, PassContext())
    source = parse(BAGS.format(start=0, last=0))
    assert [node.op for node in graph.nodes if node.op == "Range"] == []
    found, wanted = run_onnxruntime(graph, feeds)["y"], run_onnxruntime(source, feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)  # sums of 3 numbers


@pytest.mark.parametrize(("start", "last"), [(3, 0), (0, 1)])
def test_other_bags_may_be_more_or_fewer(start: int, last: int) -> None:
    graph = parse(BAGS.format(start=start, last=last))
    assert [str(v.type) for v in graph.inputs] == ["i64[N, 3]", "i64[M, 2]"]


def test_sizes_that_meet_once_a_loop_is_unrolled() -> None:
    """How many results a loop stacks is not known before, so nor are those of a product of them."""
    graph = graphopt.optimize(
        parse("""(float[N,4] x, float[M,4,3] b) => (float[N,2,3] y)
        <int64 zero = {0}, int64 one = {1}, int64 two = {2}, bool yes = {1},
         int64[4] parts = {-1, 2, 2, 2}, int64[3] joined = {-1, 2, 4}> {
            k, last, rows = Loop("", yes, zero, x) <
                body = step (int64 n, bool c, int64 i, float[N,4] s)
                    => (bool go, int64 j, float[N,4] t, float[N,4] o) {
                j = Add(i, one) go = Less(j, two) t = Sigmoid(s) o = Identity(t) }>
            turned = Transpose<perm=[1,0,2]>(rows)
            heads = Reshape(turned, parts)
            own = Reshape(heads, joined)
            p = MatMul(own, b)
            y = Relu(p)
        }""")
    )
    assert [str(value.type) for value in graph.inputs] == ["f32[N, 4]", "f32[N, 4, 3]"]
