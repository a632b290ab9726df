"""Rules are applied until none fits; what they refuse leaves no trace."""

from __future__ import annotations

import pytest

from graphopt.errors import PassError
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.printer import to_text
from graphopt.ir.verifier import verify
from graphopt.rewrite import NoMatch, Rewriter, RewriteStats, Rule, op, rewrite, rule, var
from graphopt.testing import parse

x, y = var("x"), var("y")


@rule(op.Neg(op.Neg(x).shared()))
def neg_of_neg(rw: Rewriter, x: Value) -> Value:
    """Neg(Neg(x)) -> x"""
    return x


@rule(op.Relu(x))
def relu_to_max(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """Relu(x) -> Max(x, 0), for matrices"""
    result = rw.op.Max(x, rw.const(0, "float32"))
    if x.rank is None:
        return None
    return result if x.rank == 2 else NoMatch(f"its rank is {x.rank}")


@rule(op.Split(x, ...))
def split_backwards(rw: Rewriter, x: Value, node: Node) -> list[Value] | None:
    """Split(x) -> Neg of its parts, swapped"""
    if len(node.outputs) != 2 or x.producer is not None:
        return None
    parts = rw.insert("Split", [rw.op.Abs(x), *node.inputs[1:]], dict(node.attrs), outputs=2)
    return list(parts.outputs[::-1])


def run(body: str, *rules: Rule, outputs: str = "float[] r") -> tuple[Graph, RewriteStats]:
    graph = parse(f"(float[N,4] a, float[4] b, bool c) => ({outputs}) {{ {body} }}")
    stats = RewriteStats()
    before = to_text(graph)
    changed = rewrite(graph, rules, stats)
    verify(graph)
    assert changed == (to_text(graph) != before) == bool(stats.hits)
    assert not rewrite(graph, rules, RewriteStats())
    return graph, stats


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.walk()]


def test_rules_run_to_a_fixed_point() -> None:
    body = "n1 = Neg(a) n2 = Neg(n1) n3 = Neg(n2) n4 = Neg(n3) r = Relu(n4)"
    graph, stats = run(body, neg_of_neg, relu_to_max)
    assert ops(graph) == ["Max"] and stats.hits == {"neg_of_neg": 2, "relu_to_max": 1}


def test_a_rewrite_may_make_another_possible_behind_it() -> None:
    graph, stats = run("n = Neg(a) r1 = Relu(n) r = Neg(r1)", neg_of_neg, relu_to_max)
    assert ops(graph) == ["Neg", "Max", "Neg"] and stats.hits == {"relu_to_max": 1}


def test_a_refusal_is_explained_once_and_leaves_nothing_behind() -> None:
    graph, stats = run("r = Relu(b)", relu_to_max)
    assert ops(graph) == ["Relu"] and list(stats.refusals) == [
        ("relu_to_max", next(graph.nodes).where, "its rank is 1")
    ]


def test_not_to_apply_need_not_be_explained() -> None:
    text = "(float[N] a, int64[K] s) => (float[] r) { t = Reshape(a, s) r = Relu(t) }"
    graph, stats = parse(text), RewriteStats()
    assert not rewrite(graph, [relu_to_max], stats)
    assert not stats.refusals and len(graph) == 2


def test_several_outputs_are_replaced_one_by_one() -> None:
    graph, _ = run(
        "p, q = Split<axis=1, num_outputs=2>(a) r = Neg(p) s = Exp(q)",
        split_backwards,
        outputs="float[] r, float[] s",
    )
    split = next(node for node in graph.nodes if node.op == "Split")
    (neg,), (exp,) = (value.users for value in split.outputs[::-1])
    assert (neg.op, exp.op) == ("Neg", "Exp")


def test_rules_apply_inside_of_subgraphs() -> None:
    graph, stats = run(
        """r = If(c) <
            then_branch = t () => (float[] p) { n = Neg(a) p = Neg(n) },
            else_branch = e () => (float[] q) { q = Relu(a) }
        >""",
        neg_of_neg,
        relu_to_max,
    )
    assert ops(graph) == ["If", "Max"] and sum(stats.hits.values()) == 2


def test_a_pattern_may_reach_out_of_a_subgraph() -> None:
    graph, _ = run(
        """n = Neg(a)
        r = If(c) <
            then_branch = t () => (float[] p) { p = Neg(n) },
            else_branch = e () => (float[] q) { q = Abs(a) }
        >""",
        neg_of_neg,
    )
    assert ops(graph) == ["If", "Abs"]


def test_new_nodes_stand_for_the_nodes_they_replace() -> None:
    @rule(op.Add(op.MatMul(x, y), var("z")))
    def matmul_add_to_gemm(rw: Rewriter, x: Value, y: Value, z: Value) -> Value:
        """Add(MatMul(x, y), z) -> Gemm(x, y, z)"""
        return rw.op.Gemm(x, y, z)

    graph = parse("""(float[N,4] x) => (float[] r) <float[4,4] w, float[4] b> {
        m = MatMul(x, w)
        r = Add(m, b)
    }""")
    for node, name in zip(graph.nodes, ("layer/MatMul", "layer/BiasAdd")):
        node.origin = (name,)
    rewrite(graph, [matmul_add_to_gemm], RewriteStats())
    (gemm,) = graph.nodes
    assert gemm.op == "Gemm" and set(gemm.where) == {"layer/MatMul", "layer/BiasAdd"}


def test_rules_that_undo_each_other_are_stopped() -> None:
    @rule(op.Relu(x))
    def to_abs(rw: Rewriter, x: Value) -> Value:
        """Relu(x) -> Abs(x)"""
        return rw.op.Abs(x)

    @rule(op.Abs(x))
    def to_relu(rw: Rewriter, x: Value) -> Value:
        """Abs(x) -> Relu(x)"""
        return rw.op.Relu(x)

    graph = parse("(float[N] a) => (float[] r) { r = Relu(a) }")
    with pytest.raises(PassError, match="do not settle; the last was to_"):
        rewrite(graph, [to_abs, to_relu], RewriteStats())


def test_a_rule_must_replace_every_output() -> None:
    @rule(op.Split(x, ...))
    def half(rw: Rewriter, x: Value) -> Value:
        """Split(x) -> x"""
        return x

    with pytest.raises(AssertionError, match="one value per output"):
        run("r, s = Split<axis=1, num_outputs=2>(a)", half, outputs="float[] r, float[] s")
