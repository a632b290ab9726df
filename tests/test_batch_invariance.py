"""A row's scores do not depend on its batch: the same bits alone and beside others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import shared_models

import graphopt
from graphopt import presets
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.datasets import in_batches
from graphopt.ir.graph import Graph
from graphopt.passes.quantize_activations import QuantizeActivations
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.pipeline.spec import Pipeline
from graphopt.testing import Compiled, parse, random_inputs

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
def test_the_bits_of_a_row(name: str, precision: str) -> None:
    source: Graph = parse(LAYERS if name == "layers" else golden(name))
    sizes = {dim: ROWS for value in source.inputs for dim in [str(value.tensor.dims[0])]}
    feeds = random_inputs(source, sizes, seed=1)
    budget = None
    if precision != "float32":
        budget = Budget(in_batches(feeds), 1e6)
    graph = graphopt.optimize(source, passes=PASSES[precision], budget=budget)
    ops = [node.op for node in graph.nodes]
    assert precision == "O3" or ("DequantizeLinear" in ops) == ("8" in precision)
    assert precision == "O3" or ("QuantizeLinear" in ops) == (precision == "8 bits")
    assert_rows_stand_alone(Compiled(graph), feeds)


# Models whose inputs all have a row per sample; the others hold bags with offsets.
REAL = (
    "deepctr_deepfm_ml100k", "deepctr_din_ml100k", "fuxi_dcnv2_ml100k", "keras_gru_ml100k",
    "nvidia_dlrm_joint", "recbole_sasrec_ml100k", "rechub_bst_ml100k", "rechub_mmoe_ml100k",
)  # fmt: skip


@pytest.mark.skipif(shared_models() is None, reason="no real models (set GRAPHOPT_MODELS)")
@pytest.mark.parametrize("name", REAL)
def test_the_bits_of_a_row_of_a_real_model(name: str, models: Path) -> None:
    artifact = graphopt.compile(models / name / "model.onnx", verify=False)
    feeds = dict(np.load(models / name / "inputs_b64.npz"))
    together = artifact.run(feeds)
    for rows in (slice(0, 1), slice(9, 10), slice(3, 10), slice(16, 47)):
        for output, found in artifact.run(rows_of(feeds, rows)).items():
            np.testing.assert_array_equal(found, together[output][rows])
