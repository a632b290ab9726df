"""Features that are looked up and multiplied by tiles: products of their roundings in float64."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.analysis.cost import node_cost
from graphopt.ir.graph import Graph, Node
from graphopt.machine import host_features
from graphopt.targets.cpu.kernels import amx, bfloat16
from graphopt.targets.cpu.kernels.amx import Amx
from graphopt.targets.cpu.kernels.bfloat16 import Words, round_bits
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import parse, random_inputs

TEXT = """(int64[N,{rest}] m, float[N,{dim}] d) => (float[] y)
    <float[50,{dim}] u, int64[3] up = {{-1, 1, {dim}}}> {{
    r = Reshape(d, up)
    k = Gather(u, m)
    x = Concat<axis=1>(r, k)
    y = graphopt.DotInteraction<pairs=[{pairs}]>(x{beside})
}}"""
WORDS = Words(16, "llvm.x86.avx512bf16.dpbf16ps.512", Amx())


def graph_of(features: int, dim: int, pairs: np.ndarray, beside: bool = False) -> Graph:
    shown = ", ".join(map(str, pairs[:, 0] * features + pairs[:, 1]))
    head = ", d" if beside else ""
    return parse(TEXT.format(rest=features - 1, dim=dim, pairs=shown, beside=head))


def triangle(features: int) -> np.ndarray:
    return np.stack(np.tril_indices(features, -1), 1)


def some(features: int, count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(features, size=(count, 2))


def rounded(array: np.ndarray) -> np.ndarray:
    bits = round_bits(array).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).astype(np.float64)


def expected(graph: Graph, feeds: dict[str, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    (table,) = [v.const for v in graph.constants() if v.rank == 2]
    assert table is not None
    x = np.concatenate([feeds["d"][:, None], table[feeds["m"]]], 1)
    return np.einsum("npd,npd->np", *(rounded(x[:, side]) for side in pairs.T))


@pytest.mark.skipif("avx512_bf16" not in host_features(), reason="this CPU lacks AVX512-BF16")
@pytest.mark.parametrize(
    ("features", "dim", "pairs", "beside"),
    [
        (27, 128, triangle(27), True),
        (16, 64, triangle(16), False),
        (40, 64, triangle(40), True),
        (70, 96, some(70, 100), False),
        (17, 64, some(17, 16), False),
    ],
)
def test_products(
    tiles: Amx,
    features: int,
    dim: int,
    pairs: np.ndarray,
    beside: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (amx, bfloat16):
        monkeypatch.setattr(module, "amx_for", lambda features, operands: tiles)
    graph = graph_of(features, dim, pairs, beside)
    model = graphopt.compile(graph, precision="bf16", verify=False)
    feeds = random_inputs(graph, {"N": 9})
    together = model.run(feeds)["y"]
    products = together[:, dim:] if beside else together
    # Sums of up to 128 products near 1, each rounded to float32.
    np.testing.assert_allclose(products, expected(graph, feeds, pairs), rtol=1e-5, atol=3e-5)
    if beside:
        np.testing.assert_array_equal(together[:, :dim], feeds["d"])
    for rows in (1, 4):
        part = model.run({name: array[:rows] for name, array in feeds.items()})["y"]
        np.testing.assert_array_equal(part, together[:rows])


def legal(graph: Graph, words: Words | None) -> Node:
    legalize(graph, lanes=16, words=words, every_layer=True)
    (node,) = [n for n in graph.nodes if n.op_type == "LookupInteraction"]
    return node


@pytest.mark.parametrize(
    ("features", "dim", "count", "told"),
    [(16, 64, 16, True), (15, 64, 16, False), (16, 72, 16, False), (16, 64, 15, False)],
)
def test_which_are_faster_so(features: int, dim: int, count: int, told: bool) -> None:
    pairs = some(features, count)
    assert ("words" in legal(graph_of(features, dim, pairs), WORDS).attrs) == told
    assert "words" not in legal(graph_of(features, dim, pairs), None).attrs


def test_products_count_as_those_of_tiles() -> None:
    slow, fast = (node_cost(legal(graph_of(16, 64, triangle(16)), w)) for w in (None, WORDS))
    assert slow is not None and fast is not None
    assert slow.flops != fast.flops
