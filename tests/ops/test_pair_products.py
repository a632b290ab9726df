"""`graphopt::PairProducts`: what it means, its function bodies, its types, its kernels."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime


def graph_of(
    count: int,
    dim: int,
    pairs: list[tuple[int, int]],
    matrices: list[int] | None = None,
    gathered: int = 0,
) -> Graph:
    graph = Graph(opsets={"": 18})
    inputs = [graph.add_input("x", TensorType("float32", (Sym.named("N"), count, dim)))]
    attrs = {"pairs": [i * count + j for i, j in pairs], "gathered": gathered}
    if matrices is not None:
        weights = (
            np.random.default_rng(5)
            .standard_normal((max(matrices) + 1, dim, dim))
            .astype(np.float32)
        )
        inputs.append(graph.constant(weights))
        attrs["matrices"] = matrices
    node = graph.insert("PairProducts", inputs, attrs, domain="graphopt")
    graph.set_outputs([node.output], ["y"])
    return graph


ALL = [(i, j) for i in range(7) for j in range(i + 1, 7)]
MIXED = [(3, 0), (0, 3), (6, 6), (3, 1), (0, 3), (5, 0)]


@pytest.mark.parametrize(
    ("dim", "pairs", "matrices"),
    [
        (16, ALL, None),
        (1, MIXED, None),
        (21, MIXED, None),
        (21, ALL, list(range(21))),
        (16, ALL, [i for i, _ in ALL]),
        (3, ALL, [0] * 21),
        (40, MIXED, [1, 0, 0, 1, 2, 0]),
    ],
)
def test_the_body_and_the_kernel_mean_the_same(
    dim: int, pairs: list[tuple[int, int]], matrices: list[int] | None
) -> None:
    graph = graph_of(7, dim, pairs, matrices)
    (node,) = graph.nodes
    weights = node.const(1)
    kernel, other = Compiled(graph), graph_of(7, dim, pairs, matrices, gathered=1)
    left, right = (list(side) for side in zip(*pairs))
    for size in (0, 1, 5, 33, 70):
        feeds = random_inputs(graph, {"N": size})
        x = feeds["x"].astype(np.float64)
        wanted = x[:, left]
        if weights is not None:
            wanted = np.einsum("npd,pde->npe", wanted, weights[matrices].astype(np.float64))
        wanted = wanted * x[:, right]
        for run in (kernel, *(partial(run_onnxruntime, g) for g in (graph, other))):
            found = run(feeds)["y"]
            # Sums of up to 40 products of numbers near 1.
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


TEXT = "({x} x) => (float[] y) <float[2,4,4] w, float[4,4] flat> {{ y = graphopt.PairProducts{} }}"


@pytest.mark.parametrize(
    ("x", "call", "reason"),
    [
        ("float[N,4]", "<pairs=[0]>(x)", "features must be"),
        ("int64[N,3,4]", "<pairs=[0]>(x)", "features must be"),
        ("float[N,F,4]", "<pairs=[0]>(x)", "pairs must be"),
        ("float[N,3,4]", "(x)", "pairs must be"),
        ("float[N,3,4]", "<pairs=[0, 9]>(x)", "pairs must be"),
        ("float[N,3,4]", "<pairs=[0], matrices=[0]>(x, flat)", "weights must be"),
        ("float[N,3,5]", "<pairs=[0], matrices=[0]>(x, w)", "weights must be"),
        ("float[N,3,4]", "<pairs=[0, 1], matrices=[0]>(x, w)", "matrices must be"),
        ("float[N,3,4]", "<pairs=[0, 1], matrices=[0, 2]>(x, w)", "matrices must be"),
        ("float[N,3,4]", "<pairs=[0]>(x, w)", "matrices must be"),
    ],
)
def test_what_does_not_fit(x: str, call: str, reason: str) -> None:
    with pytest.raises(InvalidModelError, match=reason):
        parse(TEXT.format(call, x=x))


@pytest.mark.parametrize(
    ("x", "call"),
    [
        ("double[N,3,4] x", "<pairs=[1]>(x)"),
        ("float[N,3,D] x", "<pairs=[1]>(x)"),
        ("float[N,3,4] x, float[2,4,4] w", "<pairs=[1], matrices=[0]>(x, w)"),
    ],
)
def test_what_has_no_kernel(x: str, call: str) -> None:
    graph = parse(f"({x}) => (float[] y) {{ y = graphopt.PairProducts{call} }}")
    with pytest.raises(UnsupportedOpError, match="are not"):
        Compiled(graph)


@pytest.mark.parametrize("matrices", [None, [1, 0, 0, 1, 2, 0]])
def test_it_is_read_back_as_it_was(matrices: list[int] | None) -> None:
    graph = graph_of(7, 4, MIXED, matrices)
    (node,), (written,) = onnx_io.from_proto(onnx_io.to_proto(graph)).nodes, graph.nodes
    assert (node.op, node.attrs) == ("graphopt::PairProducts", written.attrs)


def test_calls_with_other_pairs_have_bodies_of_their_own() -> None:
    graph = parse(
        "(float[N,3,4] x) => (float[] y) { a = graphopt.PairProducts<pairs=[1]>(x)"
        " b = graphopt.PairProducts<pairs=[2]>(x) y = Concat<axis=1>(a, b) }"
    )
    assert len(onnx_io.to_proto(graph).functions) == 2
