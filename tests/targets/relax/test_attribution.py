"""Which nodes a kernel is said to compute."""

from __future__ import annotations

import itertools

import pytest

from graphopt.targets.relax import build, lowering
from graphopt.targets.relax.reader import read
from graphopt.testing import parse


def program(text: str) -> dict[str, list[str]]:
    """For each kernel call the names of the first outputs of the nodes behind it, by kernel."""
    lowered = lowering.lower(parse(text))
    fused, nodes = build.fuse(lowered.module, lowered.emitted)
    reader = read(fused)
    assert reader is not None
    found: dict[str, list[str]] = {}
    for call in reader.calls:
        found[call.symbol] = [
            *found.get(call.symbol, []),
            "+".join(node.output.name for node in nodes[call.variable]),
        ]
    return found


def test_variables_that_fusion_names_like_others() -> None:
    """The result of a group is called `gv`, as the first variable of the program was."""
    found = program(
        """g (float[N,6] x, float[N,1] z) => (float[N,1] y, float[N,3] b)
            <int64[1] zero = {0}, int64[1] three = {3}, int64[1] one = {1}> {
            a = Slice(x, zero, three, one)
            b = Relu(a)
            s = ReduceSum(x, one)
            d = Add(s, z)
            e = Exp(d)
            y = Sigmoid(e)
        }"""
    )
    assert list(found.values()) == [["a+b"], ["s"], ["d+e+y"]]


@pytest.mark.parametrize("first", ["a", "b"])
def test_groups_of_equal_code(first: str) -> None:
    """Two groups share one function, whose variables have the names of the first."""
    second = "b" if first == "a" else "a"
    found = program(
        f"""g (float[N,6] a, float[N,6] b) => (float[N] y, float[N] z) <int64[1] axis = {{1}}> {{
            p = Mul({first}, {first})
            q = Mul({second}, a)
            y = ReduceSum<keepdims=0>(p, axis)
            z = ReduceSum<keepdims=0>(q, axis)
        }}"""
    )
    assert sorted(itertools.chain(*found.values())) == ["p+y", "q+z"]
