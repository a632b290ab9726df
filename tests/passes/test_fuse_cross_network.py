"""Cross layers with weight vectors, in the forms that exporters give them."""

from __future__ import annotations

import pytest

from graphopt.passes.fuse_cross_network import FuseCrossNetwork
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,4] x, float[N,4] o) => (float[] y) <float[4,1] w, float[4,1] v, float[1,4] t,
    float[1] zero = {0}, float[1] half = {0.5}, float[4] b, float[4] c, float[1,4] row,
    float[4,1] tall, int64[3] up = {-1, 4, 1}, int64[2] down = {-1, 4}, int64[3] dot = {-1, 1, 1},
    float[4,1] w1, float[4,2] w2, float[4,3] w3, float[1] s1 = {0}, float[2] s2, float[3] s3> { """
NETWORK = "z = graphopt.CrossNetwork(x, w{0}, s{0}, b) y = Neg(z) }}"
LAYER = "{0}d = MatMul({1}, w) {0}m = Mul(x, {0}d) {0}s = Add({0}m, b) {2} = Add({0}s, {1}) "


@pytest.mark.parametrize(
    ("body", "layers"),
    [
        (LAYER.format("a", "x", "z"), 1),
        (LAYER.format("a", "x", "u") + LAYER.format("b", "u", "z"), 2),
        (
            LAYER.format("a", "x", "u")
            + LAYER.format("b", "u", "t1")
            + LAYER.format("c", "t1", "z"),
            3,
        ),
        ("p = Gemm<transB=1>(x, t, zero) m = Mul(p, x) e = Add(m, row) z = Add(x, e)", 1),
        ("p = MatMul(x, w) m = Mul(p, x) e = Add(m, x) z = Add(e, b)", 1),
        ("p = MatMul(x, w) m = Mul(p, x) z = Add(m, x)", 1),
        (
            "r = Reshape(x, up) p = MatMul(x, w) q = Reshape(p, dot) m = MatMul(r, q)"
            " e = Add(m, tall) u = Add(e, r) f = Reshape(u, down) p2 = MatMul(f, v)"
            " q2 = Reshape(p2, dot) m2 = MatMul(r, q2) e2 = Add(m2, tall) u2 = Add(e2, u)"
            " k = Reshape(u2, down) z = Neg(k)",
            0,
        ),
    ],
)
def test_layers(body: str, layers: int) -> None:
    if layers:
        assert_rewrites(
            FuseCrossNetwork(), f"{TEXT}{body} y = Neg(z) }}", TEXT + NETWORK.format(layers)
        )
        return
    after = "n = graphopt.CrossNetwork(x, w2, s2, b) u2 = Reshape(n, up) k = Reshape(u2, down)"
    body = body.replace("k = Reshape(u2, down) z = Neg(k)", "k = Reshape(u2, down) y = Neg(k) }")
    assert_rewrites(FuseCrossNetwork(), TEXT + body, f"{TEXT}{after} y = Neg(k) }}")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("p = MatMul(o, w) m = Mul(p, x) e = Add(m, o) y = Add(e, b)", "not x0"),
        ("p = MatMul(x, w) m = Mul(p, x) e = Add(m, x) y = Add(e, b) q = Exp(p)", "also read"),
        ("p = MatMul(x, w) m = Mul(p, x) e = Add(m, x) y = Add(e, b) q = Exp(m)", "also read"),
        ("p = MatMul(x, w) m = Mul(p, o) e = Add(m, x) y = Add(e, b)", "not x0"),
        ("p = MatMul(x, w) m = Mul(p, x) e = Add(m, o) y = Add(e, b)", None),
        ("p = Exp(x) m = Mul(p, x) e = Add(m, x) y = Add(e, b)", None),
        ("p = MatMul(x, w) m = Mul(p, x) y = Add(m, b)", None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    text = TEXT.replace("(float[] y)", "(float[] y, float[] q)") if "q = " in body else TEXT
    assert_unchanged(FuseCrossNetwork(), text + body + " }", reason)


def test_layers_whose_values_are_read_in_between_stay_apart() -> None:
    text = TEXT.replace("(float[] y)", "(float[] y, float[] u)")
    after = text + "u = graphopt.CrossNetwork(x, w1, s1, c) " + LAYER.format("b", "u", "y") + "}"
    before = text + LAYER.format("a", "x", "u") + LAYER.format("b", "u", "y") + "}"
    assert_rewrites(FuseCrossNetwork(), before, after)


def test_the_bias_of_a_product_shifts_the_multiple() -> None:
    before = TEXT + "p = Gemm(x, w, half) m = Mul(p, x) e = Add(m, x) y = Add(e, b) }"
    after = TEXT + "y = graphopt.CrossNetwork(x, w1, half, b) }"
    assert_rewrites(FuseCrossNetwork(), before, after)


def test_as_many_rows_as_columns() -> None:
    text = TEXT.replace("[N,4]", "[4,4]").replace(
        "int64[3] dot = {-1, 1, 1}", "int64[2] dot = {1, 4}"
    )
    body = "p = MatMul(x, w) r = Reshape(p, dot) m = Mul(r, x) e = Add(m, x) y = Add(e, b) }"
    assert_unchanged(FuseCrossNetwork(), text + body)
    body = "p = MatMul(x, w) m = Mul(p, x) e = Add(m, x) y = Add(e, tall) }"
    after = "e = graphopt.CrossNetwork(x, w1, s1, b) y = Add(e, tall) }"
    assert_rewrites(FuseCrossNetwork(), text + body, text + after)


def test_other_dtypes_stay() -> None:
    text = (TEXT + LAYER.format("a", "x", "y") + "}").replace("float", "double")
    assert_unchanged(FuseCrossNetwork(), text, "not float32")
