"""A branch may pick as many elements as it finds when it runs."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.testing import parse, run_compiled

SUM = """g{0} = Greater(x, least) i{0} = NonZero(g{0}) t{0} = Transpose(i{0})
    v{0} = GatherND(x, t{0}) s{0} = ReduceSum(v{0}, axis) p{0} = Reshape(s{0}, column)"""
MOST = "m{0} = ReduceMax<keepdims=0>(x) p{0} = Reshape(m{0}, column)"
INNER = """p{0} = If (other) <then_branch = c () => (float[1,1] pi) {{ {1} }},
    else_branch = d () => (float[1,1] pj) {{ {2} }}>"""


def _model(first: str, second: str) -> str:
    return f"""(float[N,3] x, bool flag, bool other) => (float[1,1] y)
        <float least = {{0}}, int64[1] axis = {{0}}, int64[2] column = {{1, 1}}> {{
        y = If (flag) <then_branch = a () => (float[1,1] pa) {{ {first} }},
                       else_branch = b () => (float[1,1] pb) {{ {second} }}> }}"""


INNER_SUM = INNER.format("b", SUM.format("i"), MOST.format("j"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SUM.format("a"), MOST.format("b")),
        (MOST.format("a"), SUM.format("b")),
        (SUM.format("a"), SUM.format("b")),
        (MOST.format("a"), INNER_SUM),
    ],
)
def test_elements_that_a_branch_picks(first: str, second: str) -> None:
    graph = parse(_model(first, second))
    x = np.array([[1, -2, 3], [-1, 5, 6]], np.float32)
    expected = {True: np.maximum(x, 0).sum(), False: x.max()}
    for flag in (True, False):
        chosen = first if flag else second
        for other in (True, False):
            picks = "NonZero" in chosen and (other or chosen is not INNER_SUM)
            feeds = {"x": x, "flag": np.array(flag), "other": np.array(other)}
            (found,) = run_compiled(graph, feeds).values()
            np.testing.assert_allclose(found, [[expected[picks]]])
