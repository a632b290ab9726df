"""Layers of compressed interaction networks."""

from __future__ import annotations

import pytest

from graphopt.passes.fuse_compressed_interaction import FuseCompressedInteraction
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,3,4] x, float[N,2,4] y) => (float[] z) <int64[3] s = {-1, 6, 4},
    int64[3] other = {-1, 4, 6}, int64[3] nine = {-1, 9, 4}, float[5,6,1] w, float[5,4,1] wo,
    float[5,6,3] wide, float[5,9,1] wx, float[6,5] wt, float[9,5] wxt, float[5] b,
    int64[4] tall = {-1, 3, 1, 4}, int64[4] broad = {-1, 1, 2, 4}, int64[1] i1 = {1},
    int64[1] i2 = {2}, float[5] none> { """
OUTER = 'o = Einsum<equation="bhd,bmd->bhmd">(x, y) f = Reshape(o, s) '
FUSED = 'c = graphopt.CompressedInteraction<activation="{}">(x, {}) z = Neg(c) }}'


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (OUTER + "c = Conv(f, w, b)", FUSED.format("none", "y, wt, b")),
        (OUTER + "c = Conv(f, w)", FUSED.format("none", "y, wt, none")),
        (OUTER + "r = Conv(f, w, b) c = Relu(r)", FUSED.format("relu", "y, wt, b")),
        (
            'o = Einsum<equation="n i k, n j k -> n i j k">(x, x) f = Reshape(o, nine)'
            " c = Conv(f, wx, b)",
            FUSED.format("none", "x, wxt, b"),
        ),
        (
            "p = Reshape(x, tall) q = Unsqueeze(y, i1) o = Mul(q, p) f = Reshape(o, s)"
            " c = Conv<kernel_shape=[1], strides=[1], pads=[0, 0]>(f, w, b)",
            FUSED.format("none", "y, wt, b"),
        ),
    ],
)
def test_layers(body: str, after: str) -> None:
    assert_rewrites(FuseCompressedInteraction(), f"{TEXT}{body} z = Neg(c) }}", TEXT + after)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (OUTER + "z = Conv<pads=[1, 1]>(f, wide, b)", "mixes positions"),
        (OUTER + "z = Conv<strides=[2]>(f, w, b)", "mixes positions"),
        (OUTER + "z = Conv(f, w, b) q = Exp(o)", "also read elsewhere"),
        (OUTER + "z = Conv(f, w, b) q = Exp(f)", "also read elsewhere"),
        ('o = Einsum<equation="bhd,bmd->bhmd">(x, y) f = Reshape(o, other) z = Conv(f, wo, b)',
         "does more than merging"),
        ('o = Einsum<equation="bhd,bmd->bmhd">(x, y) f = Reshape(o, s) z = Conv(f, w, b)',
         "not the outer product"),
        ("p = Unsqueeze(x, i1) e = Exp(y) q = Unsqueeze(e, i2) o = Mul(q, p) r = Exp(o)"
         " f = Reshape(r, s) z = Conv(f, w, b)", None),
        (OUTER + "z = Neg(f)", None),
    ],
)  # fmt: skip
def test_others_stay(body: str, reason: str | None) -> None:
    text = TEXT.replace("(float[] z)", "(float[] z, float[] q)") if "q = Exp" in body else TEXT
    assert_unchanged(FuseCompressedInteraction(), text + body + " }", reason)


def test_a_layer_that_others_read_keeps_its_value() -> None:
    text = TEXT.replace("(float[] z)", "(float[] z, float[] c)")
    before = text + OUTER + "c = Conv(f, w, b) z = Relu(c) }"
    after = text + FUSED.format("none", "y, wt, b").replace("Neg", "Relu")
    assert_rewrites(FuseCompressedInteraction(), before, after)


def test_other_dtypes_stay() -> None:
    text = (TEXT + OUTER + "z = Conv(f, w, b) }").replace("float", "double")
    assert_unchanged(FuseCompressedInteraction(), text, "not float32")
