"""Ops that do nothing go; ops that look like it and do something stay."""

from __future__ import annotations

import pytest

from graphopt.passes.canonicalize import Canonicalize
from graphopt.testing import assert_keeps_outputs, assert_rewrites, assert_unchanged, parse

IDLE = {
    "identity": "h = Identity(x)",
    "sum of one": "h = Sum(x)",
    "mean of one": "h = Mean(x)",
    "max of one": "h = Max(x)",
    "min of one": "h = Min(x)",
    "concat of one": "h = Concat<axis=1>(x)",
    "dropout": "h = Dropout(x)",
    "dropout with ratio": "h = Dropout(x, half)",
    "dropout that is off": "h = Dropout(x, half, no)",
    "times one": "h = Mul(x, one)",
    "one times": "h = Mul(one, x)",
    "times a vector of ones": "h = Mul(x, ones)",
    "by one": "h = Div(x, one)",
    "to the power of one": "h = Pow(x, one)",
    "minus zero": "h = Sub(x, zero)",
    "plus minus zero": "h = Add(x, minus_zero)",
    "where true": "h = Where(yes, x, one)",
    "where false": "h = Where(no, one, x)",
    "neg of neg": "n = Neg(x) h = Neg(n)",
}
BUSY = {
    "dropout in training": ("h = Dropout(x, half, yes)", "training"),
    "dropout whose mode is an input": ("h = Dropout(x, half, flag)", "training"),
    "times two": ("h = Mul(x, half)", "not 1"),
    "a power by a vector": ("h = Pow(x, mixed)", "not 1"),
    "plus zero turns -0.0 into 0.0": ("h = Add(x, zero)", "-0.0"),
    "minus minus zero does too": ("h = Sub(x, minus_zero)", "-0.0"),
    "times one that broadcasts": ("h = Mul(x, wider)", "broadcasts"),
    "where varies": ("h = Where(mask, x, one)", "varies"),
    "where that broadcasts": ("h = Where(many, x, one)", "broadcasts"),
    "division of one": ("h = Div(one, x)", None),
    "zero minus": ("h = Sub(zero, x)", None),
}
WEIGHTS = """<float one = {1}, float[4] ones = {1, 1, 1, 1}, float half = {0.5}, float zero = {0},
    float minus_zero = {-0.0}, float[4] mixed = {1, 1, 2, 1}, float[2,1,1] wider = {1, 1},
    bool yes = {1}, bool no = {0}, bool[4] mask = {1, 0, 1, 0}, bool[2,1,1] many = {1, 1}>"""


def graph(body: str) -> str:
    return f"(float[N,4] x, bool flag) => (float[] y) {WEIGHTS} {{ {body} y = Sigmoid(h) }}"


@pytest.mark.parametrize("case", IDLE)
def test_idle_ops_go(case: str) -> None:
    assert_rewrites(Canonicalize(), graph(IDLE[case]), graph("").replace("(h)", "(x)"))


@pytest.mark.parametrize("case", BUSY)
def test_busy_ops_stay(case: str) -> None:
    body, reason = BUSY[case]
    assert_unchanged(Canonicalize(), graph(body), reason)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("h = Relu(x) g = Relu(h)", "g = Relu(x)"),
        ("h = Abs(x) g = Abs(h)", "g = Abs(x)"),
        ("h = Relu(x) g = Abs(h)", None),
    ],
)
def test_doing_it_again_changes_nothing(body: str, left: str | None) -> None:
    text = "(float[N,4] x) => (float[N,4] y) {{ {} y = Sigmoid(g) }}"
    if left is None:
        assert_unchanged(Canonicalize(), text.format(body))
    else:
        assert_rewrites(Canonicalize(), text.format(body), text.format(left))


@pytest.mark.parametrize(
    ("op", "constant", "idle"),
    [("And", 1, True), ("And", 0, False), ("Or", 0, True), ("Or", 1, False), ("Xor", 0, True)],
)
def test_neutral_elements_of_logic(op: str, constant: int, idle: bool) -> None:
    text = f"(bool[N] x) => (bool[N] y) <bool c = {{{constant}}}> {{ h = {op}(c, x) y = Not(h) }}"
    if idle:
        assert_rewrites(Canonicalize(), text, "(bool[N] x) => (bool[N] y) { y = Not(x) }")
    else:
        assert_unchanged(Canonicalize(), text, "changes something")


def test_integers_have_one_zero() -> None:
    assert_rewrites(
        Canonicalize(),
        "(int64[N] x) => (int64[N] y) <int64 zero = {0}> { h = Add(x, zero) y = Neg(h) }",
        "(int64[N] x) => (int64[N] y) { y = Neg(x) }",
    )


def test_the_mask_of_a_dropout_is_kept_where_it_is_read() -> None:
    text = """(float[N] x) => (float[N] y, bool[N] m) {
        h, mask = Dropout(x)
        m = Not(mask)
        y = Relu(h)
    }"""
    assert_unchanged(Canonicalize(), text, "mask")


def test_two_clips_become_one() -> None:
    text = """(float[N] x) => (float[N] y)
    <float a = {-1}, float b = {2}, float c = {0}, float d = {9}> {
        h = Clip(x, a, b)
        y = Clip(h, c, d)
    }"""
    after = """(float[N] x) => (float[N] y) <float c = {0}, float b = {2}> {
        y = Clip(x, c, b)
    }"""
    assert_rewrites(Canonicalize(), text, after)
    assert_unchanged(Canonicalize(), text.replace("{9}", "{-9}"), "above its upper bound")


def test_a_clip_that_others_read_is_not_merged() -> None:
    text = """(float[N] x) => (float[N] y, float[N] z) <float a = {-1}, float b = {2}> {
        h = Clip(x, a, b)
        y = Clip(h, a, b)
        z = Neg(h)
    }"""
    assert_unchanged(Canonicalize(), text, "also read elsewhere")
    output = """(float[N] x) => (float[N] h, float[N] y) <float a = {-1}, float b = {2}> {
        h = Clip(x, a, b)
        y = Clip(h, a, b)
    }"""
    assert_unchanged(Canonicalize(), output, "also read elsewhere")


def test_a_shared_inner_value_stays_for_its_other_reader() -> None:
    assert_rewrites(
        Canonicalize(),
        "(float[N] x) => (float[N] y, float[N] n) { n = Neg(x) h = Neg(n) y = Relu(h) }",
        "(float[N] x) => (float[N] y, float[N] n) { n = Neg(x) y = Relu(x) }",
    )


def test_an_output_may_become_an_input() -> None:
    graph = parse("(float[N] x) => (float[N] y) { h = Identity(x) y = Identity(h) }")
    assert_keeps_outputs(Canonicalize(), graph)
    assert graph.outputs == tuple(graph.inputs) and graph.output_names == ["y"]


def test_subgraphs_are_cleaned_too() -> None:
    text = """(float[N] x, bool c) => (float[N] y) {{
        y = If(c) <
            then_branch = a () => (float[N] u) {{ {} u = Relu({}) }},
            else_branch = b () => (float[N] v) {{ v = Neg(x) }}
        >
    }}"""
    assert_rewrites(Canonicalize(), text.format("h = Identity(x)", "h"), text.format("", "x"))
