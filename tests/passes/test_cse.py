"""Equal nodes merge; nodes that only look equal do not."""

from __future__ import annotations

import pytest

from graphopt.passes.cse import Cse
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_rewrites, assert_unchanged, parse

TEXT = """(float[N,4] x, float[N,4] z) => (float[] y)
    <float c = {{2}}, float d = {{2}}, float e = {{3}}, float minus = {{-0.0}},
     float zero = {{0}}> {{
    {} y = Max(a, b) }}"""


@pytest.mark.parametrize(
    "body",
    [
        "a = Relu(x) b = Relu(x)",
        "a = Add(x, z) b = Add(z, x)",
        "a = Mul(x, c) b = Mul(d, x)",
        "a = Softmax(x) b = Softmax<axis=-1>(x)",
        "p = Exp(x) q = Exp(x) a = Neg(p) b = Neg(q)",
    ],
)
def test_equal_nodes_merge(body: str) -> None:
    graph = parse(TEXT.format(body))
    ctx = PassContext()
    assert Cse().run(graph, ctx)
    (*_, last) = graph.nodes
    assert last.inputs[0] is last.inputs[1]


@pytest.mark.parametrize(
    "body",
    [
        "a = Sub(x, z) b = Sub(z, x)",
        "a = Mul(x, c) b = Mul(x, e)",
        "a = Sub(x, zero) b = Sub(x, minus)",
        "a = Softmax<axis=0>(x) b = Softmax<axis=1>(x)",
        "a = Relu(x) b = Relu(z)",
        "a = Cast<to=1>(x) b = Identity(x)",
        "a = RandomUniformLike(x) b = RandomUniformLike(x)",
    ],
)
def test_different_nodes_stay(body: str) -> None:
    assert_unchanged(Cse(), TEXT.format(body))


def test_a_merged_output_keeps_its_name() -> None:
    before = "(float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Relu(x) }"
    after = "(float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Identity(y) }"
    graph = parse(before)
    Cse().run(graph, PassContext())
    assert graph.output_names == ["y", "z"] and graph.outputs[0] is graph.outputs[1]
    assert len(parse(after)) == 2 and len(graph) == 1


def test_a_branch_reads_what_is_computed_around_it_but_not_the_other_way_round() -> None:
    template = """(float[N] x, bool c) => (float[N] y, float[N] z) {{
        {}
        y = If(c) <
            then_branch = a () => (float[N] p) {{ {} p = Neg(u) }},
            else_branch = b () => (float[N] q) {{ v = Exp(x) q = Abs(v) }}
        >
        {}
    }}"""
    before = template.format("z = Relu(x)", "u = Relu(x)", "")
    after = template.format("z = Relu(x)", "", "").replace("Neg(u)", "Neg(z)")
    assert_rewrites(Cse(), before, after)
    assert_unchanged(Cse(), template.format("", "u = Relu(x)", "z = Relu(x)"))
    assert_unchanged(Cse(), template.format("z = Neg(x)", "u = Exp(x)", ""))


def test_what_was_merged_stands_for_both_source_nodes() -> None:
    graph = parse(TEXT.format("a = Relu(x) b = Relu(x)"))
    names = [name for node in list(graph.nodes)[:2] for name in node.origin]
    Cse().run(graph, PassContext())
    assert list(next(iter(graph.nodes)).origin) == names
