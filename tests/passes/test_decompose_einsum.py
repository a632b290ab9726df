"""Einsums become products of matrices that give the same; others stay."""

from __future__ import annotations

import pytest

from graphopt.passes.decompose_einsum import DecomposeEinsum
from graphopt.testing import assert_keeps_outputs, assert_rewrites, assert_unchanged, parse

SIZES = {"b": "N", "e": "2", "f": "3", "h": "2", "i": "3", "j": "5", "k": "4"}


def text(equation: str, constant: bool = False) -> str:
    operands, _, _ = equation.replace(" ", "").partition("->")
    shapes = [",".join(SIZES[c] for c in letters) for letters in operands.split(",")]
    x, y = (f"float[{shape}]" for shape in shapes)
    inputs, constants = (f"{x} x", f"<{y} y>") if constant else (f"{x} x, {y} y", "")
    return f'({inputs}) => (float[] z) {constants} {{ z = Einsum<equation="{equation}">(x, y) }}'


@pytest.mark.parametrize(
    ("equation", "constant", "ops"),
    [
        ("bik,bkj->bij", False, ["MatMul"]),  # attention's second product
        ("bik,bjk->bij", False, ["Transpose", "MatMul"]),  # and its first
        ("bik,bjk -> bji", False, ["Transpose", "MatMul"]),
        ("bi,ik->bk", True, ["MatMul"]),  # a layer
        ("bfi,ik->bfk", True, ["MatMul"]),  # a layer over features (FiBiNET, PNN)
        ("bfi,ki->bfk", True, ["Transpose", "MatMul"]),
        ("bi,bik->bk", False, ["Reshape", "MatMul", "Reshape"]),  # experts by their gate
        ("bi,bi->b", False, ["Reshape", "Reshape", "MatMul", "Reshape"]),  # two towers
        ("bhik,bhjk->bhij", False, ["Transpose", "MatMul"]),
        (
            "bihk,bjhk->bhij",  # heads side by side
            False,
            ["Transpose", "Transpose", "MatMul"],
        ),
        ("bhij,bjhk->bihk", False, ["Transpose", "MatMul", "Transpose"]),
        ("bik,jk->bji", True, ["Transpose", "MatMul", "Transpose"]),
        ("bif,fij->bj", True, ["Transpose", "Reshape", "Reshape", "MatMul"]),
        ("bik,kfj->bifj", True, ["Reshape", "MatMul", "Reshape"]),
    ],
)
def test_products(equation: str, constant: bool, ops: list[str]) -> None:
    graph = parse(text(equation, constant))
    assert_keeps_outputs(DecomposeEinsum(), graph)
    assert sorted(node.op for node in graph.nodes) == sorted(ops)


def test_weights_need_no_transpose_of_what_varies() -> None:
    after = """(float[N,3,4] x) => (float[N,3,5] z) <float[5,4] y> {
        t = Transpose<perm=[1, 0]>(y) z = MatMul(x, t)
    }"""
    assert_rewrites(DecomposeEinsum(), text("bik,jk->bij", constant=True), after)


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("bhk,bik->bhik", "adds up what both have"),  # an outer product (xDeepFM)
        ("bij,bk->bk", "adds up what both have"),  # a sum of one operand
        ("bik,bkj", "adds up what both have"),
        ("...ik,...kj->...ij", "adds up what both have"),
        ("bbk,bk->b", "adds up what both have"),
        ("bi,i->b", "one vector"),
    ],
)
def test_others_stay(equation: str, reason: str) -> None:
    source = text(equation.replace("...", "b")).replace(equation.replace("...", "b"), equation)
    assert_unchanged(DecomposeEinsum(), source, reason)


def test_sizes_that_may_differ_stay() -> None:
    source = text("bik,bjk->bij").replace("float[N,5,4]", "float[M,5,4]")
    assert_unchanged(DecomposeEinsum(), source, "known only at run time")
    whole = text("bik,bjk->bij").replace("float[", "int64[").replace("int64[] z", "int64[] z")
    assert_unchanged(DecomposeEinsum(), whole, "not floats")
