"""Products of feature pairs, in every form in which they are chosen."""

from __future__ import annotations

import pytest

from graphopt.passes.fuse_dot_interaction import FuseDotInteraction
from graphopt.testing import assert_rewrites, assert_unchanged

HEAD = """(float[N,3,4] x, float[N,2] h, float[N,1] z) => (float[] y) <
    int64[3] lower = {3, 6, 7}, int64[6] itself = {0, 3, 4, 6, 7, 8}, int64[3,2] nd = {1,0,2,0,2,1},
    int64[1,3] row = {3, 6, 7}, int64[2] flat = {-1, 9},
    int64[2] tall = {9, -1},
    int64 ka = {1}, int64 kb = {2}, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2},
    int64[3] strange = {4, 1, 4}>
    { """
PRODUCTS = "t = Transpose<perm=[0,2,1]>(x) p = MatMul(x, t) "
FUSED = "s = graphopt.DotInteraction<pairs=[{}]>(x) y = Neg(s) }}"

FORMS = {
    "torchscript": "a = Transpose<perm=[1,2,0]>(p) b = Reshape(a, tall) c = Gather(b, lower)"
    " s = Transpose<perm=[1,0]>(c)",
    "dynamo": "a = Transpose<perm=[1,2,0]>(p) c = GatherND(a, nd) s = Transpose<perm=[1,0]>(c)",
    "columns": "b = Reshape(p, flat) s = Gather<axis=1>(b, lower)",
    "negative axis": "b = Flatten(p) s = Gather<axis=-1>(b, lower)",
    "elements": "b = Flatten(p) n = Shape<end=1>(x) m = Concat<axis=0>(n, i1)"
    " e = Expand(row, m) s = GatherElements<axis=1>(b, e)",
    "rows": "a = Gather<axis=1>(p, ka) b = Slice(a, i0, i1, i1) c = Gather<axis=1>(p, kb)"
    " d = Slice(c, i0, i2, i1) s = Concat<axis=1>(b, d)",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    before = HEAD + PRODUCTS + FORMS[form] + " y = Neg(s) }"
    assert_rewrites(FuseDotInteraction(), before, HEAD + FUSED.format("3, 6, 7"))


@pytest.mark.parametrize(
    ("choice", "pairs"), [("itself", "0, 3, 4, 6, 7, 8"), ("strange", "4, 1, 4")]
)
def test_any_pairs(choice: str, pairs: str) -> None:
    chosen = f"b = Reshape(p, flat) s = Gather<axis=1>(b, {choice}) y = Neg(s) }}"
    assert_rewrites(FuseDotInteraction(), HEAD + PRODUCTS + chosen, HEAD + FUSED.format(pairs))


def test_features_may_be_the_columns() -> None:
    text = "t = Transpose<perm=[0,2,1]>(x) p = MatMul(t, x) b = Flatten(p) "
    before = HEAD + text + "s = Gather<axis=1>(b, lower) y = Neg(s) }"
    after = HEAD + "t = Transpose<perm=[0,2,1]>(x) s = graphopt.DotInteraction<pairs=[3, 6, 7]>(t)"
    before = before.replace("int64[3] lower = {3, 6, 7}", "int64[3] lower = {4, 8, 9}")
    after = after.replace("int64[3] lower = {3, 6, 7}", "int64[3] lower = {4, 8, 9}")
    assert_rewrites(
        FuseDotInteraction(), before, after.replace("[3, 6, 7]>", "[4, 8, 9]>") + " y = Neg(s) }"
    )


CHOSEN = PRODUCTS + "b = Reshape(p, flat) s = Gather<axis=1>(b, lower) "


def test_columns_before_the_products() -> None:
    after = HEAD + "c = graphopt.DotInteraction<pairs=[3, 6, 7]>(x, h) "
    before = HEAD + CHOSEN + "c = Concat<axis=1>(h, s) y = Neg(c) }"
    assert_rewrites(FuseDotInteraction(), before, after + "y = Neg(c) }")
    before = HEAD + CHOSEN + "c = Concat<axis=-1>(h, s, z) y = Neg(c) }"
    assert_rewrites(FuseDotInteraction(), before, after + "d = Concat<axis=1>(c, z) y = Neg(d) }")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (PRODUCTS + "b = Reshape(p, flat) y = Neg(b)", "all of the products"),
        (CHOSEN + "y = Neg(s) q = Exp(p)", "also read elsewhere"),
        (CHOSEN + "y = Neg(s) q = Exp(b)", "also read elsewhere"),
        (PRODUCTS + "b = Reshape(p, flat) g = Slice(b, i1, i2, i0) y = Neg(g)", None),
        (PRODUCTS + "b = Transpose<perm=[1,2,0]>(p) y = Neg(b)", None),
        ("t = Transpose<perm=[0,2,1]>(x) e = Exp(x) p = MatMul(e, t) b = Flatten(p)"
         " y = Gather<axis=1>(b, lower)", None),
        ("b = Flatten(x) y = Gather<axis=1>(b, lower)", None),
    ],
)  # fmt: skip
def test_others_stay(body: str, reason: str | None) -> None:
    head = HEAD.replace("(float[] y)", "(float[] y, float[] q)") if "q = " in body else HEAD
    assert_unchanged(FuseDotInteraction(), head + body + " }", reason)


def test_a_chosen_value_that_is_an_output_stays_one() -> None:
    text = HEAD.replace("(float[] y)", "(float[] y, float[] s)")
    after = (
        text
        + "s = graphopt.DotInteraction<pairs=[3, 6, 7]>(x) c = Concat<axis=1>(h, s) y = Neg(c) }"
    )
    assert_rewrites(
        FuseDotInteraction(), text + CHOSEN + "c = Concat<axis=1>(h, s) y = Neg(c) }", after
    )


def test_features_of_unknown_number_stay() -> None:
    text = """(float[N,F,4] x) => (float[] y)
        <int64[1] a = {0}, int64[1] b = {2}, int64[1] c = {1}> {
        t = Transpose<perm=[0,2,1]>(x) p = MatMul(x, t) y = Slice(p, a, b, c) }"""
    assert_unchanged(FuseDotInteraction(), text)


def test_other_dtypes_stay() -> None:
    text = HEAD.replace("float[", "double[") + CHOSEN + "y = Neg(s) }"
    assert_unchanged(FuseDotInteraction(), text, "not float32")


def test_static_batch() -> None:
    head = HEAD.replace("[N,", "[3,")
    assert_rewrites(
        FuseDotInteraction(),
        head + PRODUCTS + FORMS["torchscript"] + " y = Neg(s) }",
        head + FUSED.format("3, 6, 7"),
    )
