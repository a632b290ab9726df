"""What `selection` says a value consists of is what it consists of, on random chains of moves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType
from graphopt.passes._selections import selection
from graphopt.testing import parse, run_onnxruntime

SAMPLES = 5  # unlike any static size below


def transposed(draw: st.DrawFn, graph: Graph, value: Value) -> Value:
    perm = draw(st.permutations(range(len(value.tensor.dims))))
    return graph.insert("Transpose", [value], {"perm": list(perm)}).output


def static_axis(draw: st.DrawFn, value: Value) -> int:
    dims = value.tensor.dims
    return draw(st.sampled_from([k for k, d in enumerate(dims) if isinstance(d, int)]))


def gathered(draw: st.DrawFn, graph: Graph, value: Value) -> Value:
    axis = static_axis(draw, value)
    size = value.tensor.dims[axis]
    positions = draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=4))  # type: ignore
    index = graph.constant(np.array(positions))
    return graph.insert("Gather", [value, index], {"axis": axis}).output


def sliced(draw: st.DrawFn, graph: Graph, value: Value) -> Value:
    axis = static_axis(draw, value)
    start = draw(st.integers(0, value.tensor.dims[axis] - 1))  # type: ignore[operator]
    bounds = [graph.constant(np.array([k])) for k in (start, 2**31, axis)]
    return graph.insert("Slice", [value, *bounds]).output


def merged(draw: st.DrawFn, graph: Graph, value: Value) -> Value:
    """Two neighbouring static axes become one."""
    dims = value.tensor.dims
    pairs = [
        k
        for k in range(len(dims) - 1)
        if isinstance(dims[k], int) and isinstance(dims[k + 1], int) and len(dims) > 2
    ]
    if not pairs:
        return value
    k = draw(st.sampled_from(pairs))
    shape = [*dims[:k], dims[k] * dims[k + 1], *dims[k + 2 :]]
    target = np.array([d if isinstance(d, int) else -1 for d in shape])
    return graph.insert("Reshape", [value, graph.constant(target)]).output


def joined(draw: st.DrawFn, graph: Graph, value: Value) -> Value:
    return graph.insert("Concat", [value, value], {"axis": static_axis(draw, value)}).output


MOVES = [transposed, gathered, sliced, merged, joined]


@st.composite
def chains(draw: st.DrawFn) -> Graph:
    graph = Graph(opsets={"": 18})
    sizes = draw(st.sampled_from([(3, 3), (2, 4), (4,)]))
    value = graph.add_input("x", TensorType("float32", (Sym.named("N"), *sizes)))
    for move in draw(st.lists(st.sampled_from(MOVES), min_size=1, max_size=5)):
        value = move(draw, graph, value)
    graph.set_outputs([value], ["y"])
    return graph


@settings(max_examples=60)
@given(graph=chains())
def test_positions_are_where_the_elements_come_from(graph: Graph) -> None:
    (source,), (result,) = graph.inputs, graph.outputs
    found = selection(result, lambda value: value is source)
    assert found is not None
    sizes = [d for d in source.tensor.dims[1:] if isinstance(d, int)]
    x = np.arange(SAMPLES * np.prod(sizes), dtype=np.float32).reshape(SAMPLES, *sizes)
    got = run_onnxruntime(graph, {"x": x})["y"] if result is not source else x
    chosen = x.reshape(SAMPLES, -1)[:, found.positions]
    np.testing.assert_array_equal(got, np.moveaxis(chosen, 0, found.batch))


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather(x, first)",  # of the samples
        "r = Reshape(x, merged) y = Identity(r)",  # not a move that is followed
        "y = Reshape(x, merged)",  # mixes samples and elements
        "e = Exp(x) y = Flatten(e)",
        "z = Concat<axis=0>(x, x) y = Flatten(z)",
        "y = Gather<axis=1>(x, outside)",  # for the model to fail on
    ],
)
def test_other_values_are_not_selections(body: str) -> None:
    graph = parse(
        f"""(float[N,4] x) => (float[] y) <int64[1] first = {{0}}, int64[1] outside = {{4}},
        int64[2] merged = {{2, -1}}> {{ {body} }}"""
    )
    assert selection(graph.outputs[0], lambda value: value is graph.inputs[0]) is None
