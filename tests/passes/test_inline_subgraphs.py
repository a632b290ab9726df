"""An If goes where its condition is the same for every input."""

from __future__ import annotations

import pytest

from graphopt.passes.inline_subgraphs import InlineSubgraphs
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,4] x, bool flag) => (float[] y)
    <bool yes = {{1}}, bool no = {{0}}, int64 one = {{1}}, int64[1] minus = {{-1}}, float[4] w> {{
    {}
    h = If({}) <
        then_branch = a () => (float[N,4] p) {{ r = Relu(x) p = Add(r, w) }},
        else_branch = b () => (float[N,4] q) {{ q = Neg(x) }}
    >
    y = Sigmoid(h)
}}"""
AFTER = "(float[N,4] x, bool flag) => (float[] y) <float[4] w> {{ {} y = Sigmoid(h) }}"
THEN, ELSE = AFTER.format("r = Relu(x) h = Add(r, w)"), AFTER.format("h = Neg(x)")


@pytest.mark.parametrize(("before", "condition", "after"), [("", "yes", THEN), ("", "no", ELSE)])
def test_a_constant_condition(before: str, condition: str, after: str) -> None:
    assert_rewrites(InlineSubgraphs(), TEXT.format(before, condition), after)


@pytest.mark.parametrize(
    ("arithmetic", "after"),
    [
        ("s = Shape<start=1>(x) d = Squeeze(s) c = Greater(d, one)", THEN),
        ("s = Shape<end=1>(x) d = Squeeze(s) c = Less(d, d)", ELSE),
        ("s = Size(x) m = Neg(s) c = Greater(m, one)", ELSE),
    ],
)
def test_a_condition_that_no_batch_changes(arithmetic: str, after: str) -> None:
    assert_rewrites(InlineSubgraphs(), TEXT.format(arithmetic, "c"), after)


@pytest.mark.parametrize(
    ("arithmetic", "condition"),
    [("", "flag"), ("s = Shape<end=1>(x) d = Squeeze(s) c = Greater(d, one)", "c")],
)
def test_a_condition_of_run_time_stays(arithmetic: str, condition: str) -> None:
    assert_unchanged(InlineSubgraphs(), TEXT.format(arithmetic, condition), "only at run time")


def test_a_branch_may_give_what_is_computed_around_it() -> None:
    text = """(float[N] x) => (float[N] y) <bool yes = {1}> {
        a = Exp(x)
        h = If(yes) <
            then_branch = t () => (float[N] p) { p = Identity(a) },
            else_branch = e () => (float[N] q) { q = Neg(x) }
        >
        y = Sigmoid(h)
    }"""
    after = "(float[N] x) => (float[N] y) { a = Exp(x) p = Identity(a) y = Sigmoid(p) }"
    assert_rewrites(InlineSubgraphs(), text, after)


def test_several_results() -> None:
    text = """(float[N] x) => (float[N] y, float[N] z) <bool no = {0}> {
        y, z = If(no) <
            then_branch = t () => (float[N] p, float[N] q) { p = Neg(x) q = Abs(x) },
            else_branch = e () => (float[N] r, float[N] s) { r = Exp(x) s = Relu(x) }
        >
    }"""
    after = "(float[N] x) => (float[N] y, float[N] z) { y = Exp(x) z = Relu(x) }"
    assert_rewrites(InlineSubgraphs(), text, after)


def test_an_if_within_a_branch() -> None:
    text = """(float[N] x, bool flag) => (float[N] y) <bool yes = {{1}}> {{
        y = If(flag) <
            then_branch = t () => (float[N] p) {{ {} }},
            else_branch = e () => (float[N] q) {{ q = Neg(x) }}
        >
    }}"""
    inner = """p = If(yes) <
        then_branch = u () => (float[N] v) { v = Exp(x) },
        else_branch = w () => (float[N] z) { z = Abs(x) }
    >"""
    assert_rewrites(InlineSubgraphs(), text.format(inner), text.format("p = Exp(x)"))
