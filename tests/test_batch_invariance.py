"""A row's scores do not depend on its batch: the same bits alone and beside others.

`test_models.py` sees to the same in real models.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.datasets import in_batches
from graphopt.accuracy.stopwatch import Stopwatch
from graphopt.errors import SpecError
from graphopt.ir.graph import Graph
from graphopt.passes.quantize_activations import QuantizeActivations
from graphopt.passes.quantize_tables import QuantizeTables
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.pipeline import presets
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.spec import Pipeline
from graphopt.targets.base import find
from graphopt.testing import Compiled, Lavish, parse, random_inputs

GOLDEN = Path(__file__).parent / "golden"
# A layer of every kind: whole vectors of columns and parts of them, a head as narrow as rows of
# vectors suit, an operand at the store, a normalization, an activation in vectors.
LAYERS = """(float[N,67] x) => (float[N,1] y) <
    float[67,130] u, float[130] a, float[130] s, float[130,67] v, float[67] b,
    float[67,33] w, float[33,1] h, float[1] c> {
    l = Gemm(x, u, a)
    g = Elu(l)
    n = LayerNormalization(g, s)
    m = MatMul(n, v)
    p = Add(m, b)
    q = Mul(p, x)
    r = Add(q, x)
    t = MatMul(r, w)
    e = Tanh(t)
    o = Gemm(e, h, c)
    y = Sigmoid(o)
}"""
WEIGHTS = (*presets.O2.steps, QuantizeWeights(min_bytes=64))
PASSES = {
    "float32": presets.O2,
    "8-bit weights": Pipeline(WEIGHTS),
    "8 bits": Pipeline((*WEIGHTS, QuantizeActivations())),
    "8 bits by row": Pipeline((*WEIGHTS, QuantizeActivations(ranges="dynamic"))),
    "O3": presets.O3,
}
SIZES = (1, 2, 3, 5, 7, 12, 13, 31, 48, 49, 65)
ROWS = 130


def golden(name: str) -> str:
    lines = (GOLDEN / name / "source.txt").read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def rows_of(feeds: dict[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array[rows]) for name, array in feeds.items()}


def assert_rows_stand_alone(model: Compiled, feeds: dict[str, np.ndarray]) -> None:
    """Every batch that `feeds` is cut into gives the bits of the whole."""
    together = model(feeds)
    for size in SIZES:
        for start in range(0, min(ROWS - size, 3 * size) + 1, size):
            rows = slice(start, start + size)
            for name, found in model(rows_of(feeds, rows)).items():
                np.testing.assert_array_equal(found, together[name][rows], err_msg=f"{rows}")


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(("layers", precision) for precision in PASSES),
        *((name, p) for name in ("dcnv2", "din", "mmoe") for p in ("float32", "8 bits")),
    ],
)
def test_the_bits_of_a_row(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Narrow layers too are to be in 8 bits, whatever the clock says.
    monkeypatch.setattr(Stopwatch, "slower", lambda *_: [])
    source: Graph = parse(LAYERS if name == "layers" else golden(name))
    sizes = {dim: ROWS for value in source.inputs for dim in [str(value.tensor.dims[0])]}
    feeds = random_inputs(source, sizes, seed=1)
    budget = None
    if precision != "float32":
        budget = Budget(in_batches(feeds), 1e6)
    target = "cpu:icelake-server"  # which multiplies bytes
    graph = graphopt.optimize(source, passes=PASSES[precision], budget=budget, target=target)
    ops = [node.op for node in graph.nodes]
    assert ("graphopt::DynamicMatMul" in ops) == (precision == "8 bits by row")
    stored = precision in ("8-bit weights", "8 bits by row")  # the latter in narrow layers
    assert precision == "O3" or ("graphopt::StoredWeights" in ops) == stored
    assert precision == "O3" or ("QuantizeLinear" in ops) == (precision == "8 bits")
    assert_rows_stand_alone(Compiled(graph), feeds)


def test_the_bits_of_sums_of_products() -> None:
    source = """(float[N,32] x, float[N,32] z) => (float[N,1] y) <int64[1] last = {1}> {
        t = Tanh(x) s = Mul(t, t) n = ReduceSum(s, last) p = Mul(t, z) q = ReduceSum(p, last)
        y = Div(q, n) }"""
    graph = parse(source)
    assert_rows_stand_alone(Compiled(graph), random_inputs(graph, {"N": ROWS}, seed=1))


# Bags of one length, and bags between offsets.
BAGS = {
    "fixed": """(int64[N,5] ids) => (float[N,24] y) <float[5000,16] t, float[16,24] w> {
        p = graphopt.EmbeddingBag<mode="mean">(t, ids)
        y = MatMul(p, w)
    }""",
    "offsets": """(int64[n] ids, int64[N] offsets) => (float[N,24] y)
    <float[5000,16] t, float[16,24] w> {
        p = graphopt.EmbeddingBag<mode="sum">(t, ids, offsets)
        y = MatMul(p, w)
    }""",
}


def in_form(text: str, what: str) -> Graph:
    """The graph with its table in one of the forms that are offered for it."""
    graph = parse(text)
    offered = QuantizeTables().propose(graph, PassContext(budget=Lavish()))
    for proposal in [] if what == "float32" else [p for p in offered if p.what == what]:
        proposal.apply(graph, {value: value for value in graph.constants()})
    ops = {node.op for node in graph.nodes}
    assert ("graphopt::EmbeddingBag" in ops) == (what in ("float32", "float16"))
    return graph


@pytest.mark.parametrize("what", ["float32", "float16", "int8", "int4", "codebooks of 4"])
@pytest.mark.parametrize("bags", BAGS)
def test_the_bits_of_a_bag(bags: str, what: str) -> None:
    if what.startswith("codebooks"):
        pytest.importorskip("faiss")
    model = Compiled(in_form(BAGS[bags], what))
    ids = np.random.default_rng(0).integers(0, 5000, (67, 5))
    if bags == "fixed":
        together = model({"ids": ids})["y"]
        for rows in (slice(0, 1), slice(9, 10), slice(3, 10), slice(16, 47)):
            np.testing.assert_array_equal(model({"ids": ids[rows]})["y"], together[rows])
        return
    ends = np.cumsum(np.random.default_rng(1).integers(0, 6, 68))
    flat, starts = ids.reshape(-1)[: ends[-1]], ends[:-1] - ends[0]
    flat = flat[: ends[-1] - ends[0]]
    together = model({"ids": flat, "offsets": starts})["y"]
    bounds = [*starts, len(flat)]
    for first, last in ((0, 1), (9, 10), (3, 10), (16, 47)):
        own = {"ids": flat[bounds[first] : bounds[last]], "offsets": starts[first:last]}
        own["offsets"] = own["offsets"] - bounds[first]
        np.testing.assert_array_equal(model(own)["y"], together[first:last])


def computes_bfloat16() -> bool:
    try:
        find("cpu").computing("bf16")
    except SpecError:
        return False
    return True


@pytest.mark.skipif(not computes_bfloat16(), reason="this CPU does not multiply bfloat16")
def test_the_bits_of_a_row_in_bfloat16() -> None:
    source = parse(LAYERS)
    feeds = random_inputs(source, {"N": ROWS}, seed=1)
    artifact = graphopt.compile(source, precision="bf16", verify=False)
    assert_rows_stand_alone(artifact.run, feeds)  # type: ignore[arg-type]
