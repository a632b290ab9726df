"""Convolutions with windows that overlap are products of what is in each."""

from __future__ import annotations

import pytest

from graphopt.passes.join_windows import JoinWindows
from graphopt.testing import assert_keeps_outputs, assert_unchanged, parse


def conv(shape: str, weight: str, attrs: str) -> str:
    return (
        f"(float[{shape}] x) => (float[] y) <float[{weight}] w, float[{weight[0]}] b> "
        f"{{ y = Conv{attrs}(x, w, b) }}"
    )


@pytest.mark.parametrize(
    ("shape", "weight", "attrs"),
    [
        ("N,4,9", "8,4,3", ""),
        ("N,4,9", "8,4,3", "<pads=[2, 0]>"),
        ("N,4,9", "8,4,3", "<pads=[4, 4], dilations=[4]>"),
        ("N,4,9", "8,4,3", '<auto_pad="SAME_UPPER">'),
        ("N,4,5", "8,4,3", "<dilations=[2], strides=[2]>"),
        ("N,4,1,9", "8,4,1,3", "<pads=[0, 2, 0, 0]>"),
        ("N,1,6,5", "8,1,3,5", ""),  # Caser, horizontal
        ("N,3,6,5", "8,3,2,1", "<pads=[1, 0, 0, 0]>"),  # along fields, FGCNN
        ("N,3,6,5", "8,3,1,2", ""),
        ("N,3,2,5,4", "8,3,2,1,3", ""),
        ("N,4,K", "8,4,3", ""),
        ("N,4,K", "8,4,3", "<pads=[3, 1], dilations=[2]>"),
        ("N,4,1,K", "8,4,1,3", "<pads=[0, 2, 0, 0]>"),
    ],
)
def test_they_become_products(shape: str, weight: str, attrs: str) -> None:
    graph = parse(conv(shape, weight, attrs))
    assert_keeps_outputs(JoinWindows(), graph)
    ops = [node.op for node in graph.nodes]
    assert "Conv" not in ops and ops.count("MatMul") == 1


@pytest.mark.parametrize(
    ("shape", "weight", "attrs", "reason"),
    [
        ("N,4,9", "8,1,3", "<group=4>", "groups"),
        ("N,4,9", "8,4,3", "<strides=[2]>", "skip positions"),
        ("N,4,9,9", "8,4,3,3", "", "several axes"),
        ("N,4,K", "8,4,3", "<strides=[2]>", "skip positions"),
    ],
)
def test_others_stay(shape: str, weight: str, attrs: str, reason: str) -> None:
    assert_unchanged(JoinWindows(), conv(shape, weight, attrs), reason)
