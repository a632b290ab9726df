"""Sequences whose making is known are taken apart."""

from __future__ import annotations

import pytest

from graphopt.passes.resolve_sequences import ResolveSequences
from graphopt.testing import assert_keeps_outputs, assert_rewrites, assert_unchanged, parse

TEXT = """(float[N,2] a, float[N,2] b, float[N,2] c, int64 n) => (float[] y)
    <int64 zero = {{0}}, int64 one = {{1}}, int64 minus = {{-1}}, int64 five = {{5}}> {{ {} }}"""
THREE = "s = SequenceConstruct(a, b, c) "


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (THREE + "e = SequenceAt(s, one) y = Neg(e)", "y = Neg(b)"),
        (THREE + "e = SequenceAt(s, minus) y = Neg(e)", "y = Neg(c)"),
        (
            THREE + "t = SequenceInsert(s, a, one) y = ConcatFromSequence<axis=1>(t)",
            "y = Concat<axis=1>(a, a, b, c)",
        ),
        (
            THREE + "t = SequenceInsert(s, a) y = ConcatFromSequence<axis=0>(t)",
            "y = Concat<axis=0>(a, b, c, a)",
        ),
        (
            THREE + "t = SequenceErase(s, zero) y = ConcatFromSequence<axis=1>(t)",
            "y = Concat<axis=1>(b, c)",
        ),
        (
            THREE + "t = SequenceErase(s) y = ConcatFromSequence<axis=1>(t)",
            "y = Concat<axis=1>(a, b)",
        ),
    ],
)
def test_reads_become_elements(body: str, after: str) -> None:
    assert_rewrites(ResolveSequences(), TEXT.format(body), TEXT.format(after))


def test_a_new_axis() -> None:
    graph = parse(TEXT.format(THREE + "y = ConcatFromSequence<axis=1, new_axis=1>(s)"))
    assert_keeps_outputs(ResolveSequences(), graph)
    assert str(graph.outputs[0].type) == "f32[N, 3, 2]"


def test_the_length_is_a_number() -> None:
    graph = parse("(float[N] a) => (int64 y) { s = SequenceConstruct(a, a) y = SequenceLength(s) }")
    assert_keeps_outputs(ResolveSequences(), graph)
    assert graph.outputs[0].const == 2


@pytest.mark.parametrize(
    "body",
    [
        THREE + "e = SequenceAt(s, n) y = Neg(e)",
        THREE + "e = SequenceAt(s, five) y = Neg(e)",
        THREE + "t = SequenceInsert(s, a, n) y = ConcatFromSequence<axis=1>(t)",
        THREE + "t = SequenceErase(s, five) y = ConcatFromSequence<axis=1>(t)",
        "s = SplitToSequence<axis=0>(a) y = ConcatFromSequence<axis=0>(s)",
        "s = SequenceEmpty() t = SequenceErase(s) y = ConcatFromSequence<axis=1>(t)",
    ],
)
def test_what_is_decided_at_run_time_stays(body: str) -> None:
    assert_unchanged(ResolveSequences(), TEXT.format(body))


def test_a_branch_reads_the_sequence_around_it() -> None:
    template = """(float[N] a, float[N] b, bool f) => (float[N] y) <int64 one = {{1}}> {{
        {}
        y = If(f) <
            then_branch = t () => (float[N] p) {{ {} p = Neg({}) }},
            else_branch = e () => (float[N] q) {{ q = Neg(a) }}
        >
    }}"""
    before = template.format("s = SequenceConstruct(a, b)", "v = SequenceAt(s, one)", "v")
    assert_rewrites(ResolveSequences(), before, template.format("", "", "b"))


SPLIT = """(float[N,7] x, int64 n) => (float[] y) <
    int64 zero = {{0}}, int64 one = {{1}}, int64 minus = {{-1}}, int64 three = {{3}},
    int64[2] parts = {{2, 5}}, int64[3] by_three = {{3, 3, 1}}
> {{ {} }}"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            "s = SplitToSequence<axis=1>(x, parts) e = SequenceAt(s, one) y = Neg(e)",
            "a, b = Split<axis=1>(x, parts) y = Neg(b)",
        ),
        (
            "s = SplitToSequence<axis=-1>(x, three) e = SequenceAt(s, minus) y = Neg(e)",
            "a, b, c = Split<axis=-1>(x, by_three) y = Neg(c)",
        ),
    ],
)
def test_parts_of_known_number(body: str, after: str) -> None:
    assert_rewrites(ResolveSequences(), SPLIT.format(body), SPLIT.format(after))


def test_parts_without_their_axis() -> None:
    body = "s = SplitToSequence<axis=1, keepdims=0>(x) e = SequenceAt(s, minus) y = Neg(e)"
    graph = parse(SPLIT.format(body))
    assert_keeps_outputs(ResolveSequences(), graph)
    assert str(graph.outputs[0].type) == "f32[N]"


@pytest.mark.parametrize(
    "body",
    [
        "s = SplitToSequence<axis=1>(x, parts) e = SequenceAt(s, n) y = Neg(e)",
        "s = SplitToSequence<axis=0>(x, three) e = SequenceAt(s, zero) y = Neg(e)",
    ],
)
def test_parts_that_are_not_known_stay(body: str) -> None:
    assert_unchanged(ResolveSequences(), SPLIT.format(body), "its elements are not known")
