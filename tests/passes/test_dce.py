"""What nobody reads goes, and nothing else."""

from __future__ import annotations

from graphopt.passes.dce import Dce
from graphopt.testing import assert_rewrites, assert_unchanged


def test_a_dead_chain_goes_whole() -> None:
    ctx = assert_rewrites(
        Dce(),
        "(float[N] x) => (float[N] y) { a = Exp(x) b = Neg(a) c = Relu(b) y = Abs(x) }",
        "(float[N] x) => (float[N] y) { y = Abs(x) }",
    )
    assert ctx.stats.hits["erased"] == 3


def test_a_dead_branch_frees_what_it_captured() -> None:
    before = """(float[N] x, bool c) => (float[N] y) {
        a = Exp(x)
        d = If(c) <
            then_branch = t () => (float[N] p) { p = Neg(a) },
            else_branch = e () => (float[N] q) { q = Identity(a) }
        >
        y = Abs(x)
    }"""
    assert_rewrites(Dce(), before, "(float[N] x, bool c) => (float[N] y) { y = Abs(x) }")


def test_dead_nodes_inside_of_a_branch_go() -> None:
    template = """(float[N] x, bool c) => (float[N] y) {{
        y = If(c) <
            then_branch = t () => (float[N] p) {{ {} p = Neg(x) }},
            else_branch = e () => (float[N] q) {{ q = Abs(x) }}
        >
    }}"""
    assert_rewrites(Dce(), template.format("d = Exp(x)"), template.format(""))


def test_what_only_a_branch_reads_stays() -> None:
    text = """(float[N] x, bool c) => (float[N] y) {
        a = Exp(x)
        b = Relu(x)
        y = If(c) <
            then_branch = t () => (float[N] p) { p = Identity(a) },
            else_branch = e () => (float[N] q) { q = Neg(b) }
        >
    }"""
    assert_unchanged(Dce(), text)


def test_one_of_several_outputs_keeps_a_node() -> None:
    text = """(float[N,4] x) => (float[N,2] y) <int64[2] s = {2, 2}> {
        a, b = Split<axis=1>(x, s)
        y = Neg(b)
    }"""
    assert_unchanged(Dce(), text)


def test_unused_inputs_stay() -> None:
    assert_unchanged(Dce(), "(float[N] x, float[M] unused) => (float[N] y) { y = Abs(x) }")
