"""Masks that are the same for each row become positions."""

from __future__ import annotations

import pytest

from graphopt.passes.resolve_masks import ResolveMasks
from graphopt.testing import assert_keeps_outputs, assert_unchanged, parse


def text(mask: str, numbers: str = "float[N,3,2] x", target: str = "s = Shape(x)") -> str:
    return f"""({numbers}) => (float[K] y) <{mask}, int64[3] fixed = {{2, 3, 2}}> {{
        {target} e = Expand(m, s) z = NonZero(e) t = Transpose<perm=[1, 0]>(z) y = GatherND(x, t)
    }}"""


@pytest.mark.parametrize("rows", [0, 1, 4])
@pytest.mark.parametrize(
    "mask",
    [
        "bool[3,2] m = {0, 1, 1, 0, 1, 0}",
        "bool[1,3,2] m = {1, 1, 1, 1, 1, 1}",
        "bool[3,1] m = {0, 1, 1}",
        "bool[2] m = {0, 1}",
        "int64[3,2] m = {0, -1, 5, 0, 0, 0}",
    ],
)
def test_positions_of_each_row(mask: str, rows: int) -> None:
    graph = parse(text(mask))
    assert_keeps_outputs(ResolveMasks(), graph, sizes={"N": rows})
    assert [node.op for node in graph.nodes] == ["Reshape", "Gather", "Reshape"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (text("bool[2,1,1] m = {0, 1}", "float[2,3,2] x"), "not the same for rows"),
        (text("bool[3,1] m = {0, 1, 1}", "float[N,3,M] x"), "not the same for rows"),
        (text("bool[2] m = {0, 0}"), "selects nothing"),
        (text("bool[1] m = {1}"), "not the same for rows"),
        (
            text("bool[2] m = {0, 1}", "float[4,3,2] x", "s = Identity(fixed)"),
            "not have the shape",
        ),
    ],
)
def test_other_masks_stay(source: str, reason: str) -> None:
    assert_unchanged(ResolveMasks(), source, reason)
