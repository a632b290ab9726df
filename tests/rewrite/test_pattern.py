"""What a pattern fits, and why it does not."""

from __future__ import annotations

import pytest

from graphopt.ir.graph import Node
from graphopt.rewrite import NoMatch, Pattern, const, op, rule, var
from graphopt.rewrite.pattern import Match, match
from graphopt.testing import parse

x, y, w = var("x"), var("y"), const("w")
MATMUL_ADD = op.Add(op.MatMul(x, w), const("b"))


def last(body: str, outputs: str = "float[] r") -> Node:
    graph = parse(f"""(float[N,4] a, float[N,4] b) => ({outputs})
    <float[4,4] c, float[4] d, float one = {{1}}> {{ {body} }}""")
    return list(graph.nodes)[-1]


@pytest.mark.parametrize(
    ("pattern", "body", "fits"),
    [
        (op.Relu(x), "r = Relu(a)", True),
        (op.Relu(x), "r = Neg(a)", False),
        (MATMUL_ADD, "m = MatMul(a, c) r = Add(m, d)", True),
        (MATMUL_ADD, "m = MatMul(a, c) r = Add(d, m)", True),
        (MATMUL_ADD, "m = MatMul(a, c) r = Sub(d, m)", False),
        (MATMUL_ADD, "m = MatMul(a, c) r = Add(m, b)", False),
        (MATMUL_ADD, "t = Transpose(a) m = MatMul(b, t) r = Add(m, one)", False),
        (op.Sub(x, y), "r = Sub(a, b)", True),
        (op.Sub(x, w), "r = Sub(c, a)", False),
        (op.Add(x, x), "r = Add(a, a)", True),
        (op.Add(x, x), "r = Add(a, b)", False),
        (op.Mul(x, op.Sigmoid(x)), "s = Sigmoid(a) r = Mul(s, a)", True),
        (op.Mul(x, op.Sigmoid(x)), "s = Sigmoid(b) r = Mul(s, a)", False),
        (op.Add(op.Relu(x), op.Neg(y)), "p = Neg(a) q = Relu(b) r = Add(p, q)", True),
        (op.Clip(x, ...), "r = Clip(a, one)", True),
        (op.Clip(x), "r = Clip(a, one)", False),
        (op.Clip(x, ...), 'r = Clip(a, "", one)', True),
        (op.Clip(x, w), 'r = Clip(a, "", one)', False),
        (op.Gemm(x, w), "r = Gemm(a, c, d)", False),
        (op.Softmax(x, axis=-1), "r = Softmax(a)", True),
        (op.Softmax(x, axis=0), "r = Softmax(a)", False),
        (op.Transpose(x, perm=[1, 0]), "r = Transpose<perm=[1,0]>(a)", True),
        (op.Transpose(x, perm=(1, 0)), "r = Transpose<perm=[1,0]>(a)", True),
        (op.Transpose(x, perm=[0, 1]), "r = Transpose<perm=[1,0]>(a)", False),
    ],
)
def test_fits(pattern: Pattern, body: str, fits: bool) -> None:
    assert isinstance(match(pattern, last(body)), Match) == fits


def test_variables_are_bound_to_values() -> None:
    root = last("m = MatMul(a, c) r = Add(d, m)")
    found = match(MATMUL_ADD.named("sum"), root)
    assert isinstance(found, Match) and root.graph is not None
    assert found.values["x"] is root.graph.inputs[0]
    assert found.values["w"].name == "c" and found.values["b"].name == "d"
    assert found.values["sum"] is root.output
    assert [node.op for node in found.nodes] == ["Add", "MatMul"]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("m = MatMul(a, c) n = Neg(m) k = Exp(n) r = Add(m, d)", "float[] r, float[] k"),
        ("m = MatMul(a, c) r = Add(m, d)", "float[] m, float[] r"),
    ],
)
def test_inner_values_are_the_patterns_own_unless_shared(body: str, outputs: str) -> None:
    root = last(body, outputs)
    refused = match(MATMUL_ADD, root)
    assert isinstance(refused, NoMatch) and "'m' inside the pattern" in refused.reason
    shared = op.Add(op.MatMul(x, w).shared(), const("b"))
    assert isinstance(match(shared, root), Match)


def test_an_inner_value_that_the_pattern_reads_twice_is_its_own() -> None:
    square = op.Mul(op.Relu(x).named("r"), op.Relu(x))
    assert isinstance(match(square, last("s = Relu(a) r = Mul(s, s)")), Match)


def test_only_the_first_output_is_followed() -> None:
    splits = "p, q = Split<axis=1, num_outputs=2>(a) "
    assert isinstance(match(op.Relu(op.Split(x)), last(splits + "r = Relu(p)")), Match)
    assert match(op.Relu(op.Split(x)), last(splits + "r = Relu(q)")) is None


def test_a_misspelt_op_fails_where_the_rule_is_written() -> None:
    with pytest.raises(AttributeError, match="no op 'MatMull'"):
        op.MatMull(x, y)


def test_a_rule_takes_its_name_and_description_from_the_function() -> None:
    @rule(op.Neg(op.Neg(x)))
    def neg_of_neg(rw, x, node):  # type: ignore[no-untyped-def]
        """Neg(Neg(x)) -> x

        More.
        """
        return x

    assert neg_of_neg.name == "neg_of_neg" and neg_of_neg.doc == "Neg(Neg(x)) -> x"
    assert neg_of_neg.parameters == ("x", "node")
