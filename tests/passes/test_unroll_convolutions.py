"""Convolutions that take each position once are products; others stay."""

from __future__ import annotations

import pytest

from graphopt.passes.unroll_convolutions import UnrollConvolutions
from graphopt.testing import assert_keeps_outputs, assert_unchanged, parse


def text(shape: str, weight: str, attrs: str = "", bias: bool = False) -> str:
    outputs, operands = weight.split(",")[0], "x, w, b" if bias else "x, w"
    declared = f"float[{weight}] w, float[{outputs}] b" if bias else f"float[{weight}] w"
    return f"(float[{shape}] x) => (float[] y) <{declared}> {{ y = Conv{attrs}({operands}) }}"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("shape", "weight", "attrs"),
    [
        ("N,4,9", "8,4,1", ""),
        ("N,4,9", "8,4,9", ""),
        ("N,4,1,9", "8,4,1,1", ""),
        ("N,1,6,5", "8,1,6,1", ""),  # Caser, vertical
        ("N,1,6,5", "8,1,1,5", ""),  # Caser, horizontal
        ("N,2,6,5", "8,2,6,5", ""),
        ("N,3,2,5,4", "8,3,2,1,4", ""),
    ],
)
def test_they_become_products(shape: str, weight: str, attrs: str, bias: bool) -> None:
    graph = parse(text(shape, weight, attrs, bias))
    assert_keeps_outputs(UnrollConvolutions(), graph)
    ops = [node.op for node in graph.nodes]
    assert "Conv" not in ops and ops.count("MatMul") == 1


@pytest.mark.parametrize(
    ("shape", "weight", "attrs", "reason"),
    [
        ("N,4,9", "8,4,3", "", "several windows"),
        ("N,4,9", "8,1,3", "<group=4>", "groups"),
        ("N,4,9", "8,4,3", "<strides=[2]>", "skip positions"),
        ("N,4,9,9", "8,4,3,3", "", "several axes"),
        ("N,4,K", "8,4,3", "", "no known size"),
    ],
)
def test_others_stay(shape: str, weight: str, attrs: str, reason: str) -> None:
    assert_unchanged(UnrollConvolutions(), text(shape, weight, attrs), reason)


def test_a_computed_bias_stays() -> None:
    computed = """(float[N,4,9] x, float[8] b) => (float[] y) <float[8,4,3] w> {
        y = Conv(x, w, b) }"""
    assert_unchanged(UnrollConvolutions(), computed, "bias is computed")


@pytest.mark.parametrize(
    ("pad", "attrs", "left"),
    [
        ("Pad(x, pads)", "<pads=[1, 1]>", [3, 2]),
        ("Pad(x, pads)", '<auto_pad="VALID">', [2, 1]),
        ("Pad(x, pads, zero)", "", [2, 1]),
        ("Pad(x, pads, one)", "", None),
        ("Pad(x, channels)", "", None),
        ("Pad(x, cut)", "", None),
        ('Pad<mode="edge">(x, pads)', "", None),
        ("Pad(x, pads)", '<auto_pad="SAME_UPPER">', None),
    ],
)
def test_padding_becomes_that_of_the_convolution(
    pad: str, attrs: str, left: list[int] | None
) -> None:
    graph = parse(
        f"""(float[N,4,9] x) => (float[] y)
    <float[8,4,3] w, int64[6] pads = {{0, 0, 2, 0, 0, 1}}, int64[6] cut = {{0, 0, -1, 0, 0, 0}},
     int64[6] channels = {{0, 1, 0, 0, 0, 0}}, float zero = {{0}}, float one = {{1}}> {{
        p = {pad} z = Conv{attrs}(p, v) y = Neg(z) }}""".replace(
            "w,", f"w, float[8,{5 if 'channels)' in pad else 4},3] v,"
        )
    )
    assert_keeps_outputs(UnrollConvolutions(), graph)
    (conv,) = [node for node in graph.nodes if node.op == "Conv"]
    assert (conv.attr("pads") if left else None) == left
    assert ("Pad" in [node.op for node in graph.nodes]) == (left is None)
