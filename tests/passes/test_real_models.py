"""The presets on real exports: no bit changes at O1, and the noise of exporters is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import EXAMPLE, shared_models

from graphopt.ir.content import known_ints
from graphopt.ir.graph import Graph, Node
from graphopt.ir.onnx_io import load
from graphopt.pipeline import presets
from graphopt.pipeline.base import Fidelity
from graphopt.pipeline.manager import PassManager
from graphopt.testing import assert_same_outputs, random_inputs, run_onnxruntime

FOLDER = shared_models()
NAMES = sorted(p.parent.name for p in FOLDER.glob("*/model.onnx")) if FOLDER else []
# The most nodes that each model may have after O2, subgraphs included.
NODES = {
    "deepctr_deepfm_ml100k": 75,
    "deepctr_din_ml100k": 72,
    "deepctr_xdeepfm": 135,
    "dlrm_fb_cli": 47,
    "dlrm_fb_dynamo": 46,
    "fuxi_dcnv2_ml100k": 38,
    "keras_gru_ml100k": 540,
    "nvidia_dlrm_joint": 25,
    "nvidia_ncf": 15,
    "public_dlrm_loop": 25,
    "public_ncf_keras": 25,
    "recbole_sasrec_ml100k": 83,
    "rechub_bst_ml100k": 77,
    "rechub_dien": 110,
    "rechub_mmoe_ml100k": 48,
    "tf_deepfm_ml100k": 57,
    "torchrec_dlrm_mean": 28,
    "torchrec_dlrm_ml100k": 26,
}

real = pytest.mark.skipif(FOLDER is None, reason="no real models (set GRAPHOPT_MODELS)")


def feeds(folder: Path) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    for path in sorted(folder.glob("inputs_b*.npz")):
        expected = path.with_name(path.name.replace("inputs", "expected"))
        yield dict(np.load(path)), dict(np.load(expected))


@real
@pytest.mark.parametrize("name", NAMES)
def test_o1_keeps_every_bit(name: str, models: Path) -> None:
    graph = load(models / name / "model.onnx")
    clean = graph.clone()
    PassManager().run(clean, presets.O1)
    for inputs, _ in feeds(models / name):
        wanted = run_onnxruntime(graph, inputs)
        assert_same_outputs(run_onnxruntime(clean, inputs), wanted, Fidelity.EXACT)


@real
@pytest.mark.parametrize("name", NAMES)
def test_little_is_left_and_o3_settles(name: str, models: Path) -> None:
    graph = load(models / name / "model.onnx")
    PassManager().run(graph, presets.O2)
    assert sum(1 for _ in graph.walk()) <= NODES.get(name, 2000)
    assert not superfluous(graph)
    PassManager().run(graph, presets.O3)
    for inputs, expected in feeds(models / name):
        found = run_onnxruntime(graph, inputs)
        assert_same_outputs(found, expected, Fidelity.REASSOCIATES)
    assert not PassManager().run(graph, presets.O3), "a second run changes something"


def superfluous(graph: Graph) -> list[Node]:
    """Nodes that only compute what is known, or that take more ops than needed."""
    found = []
    for node in graph.walk():
        source = node.input(0)
        before = source.producer.op if source is not None and source.producer else ""
        known = known_ints(node.outputs[0].content) is not None
        idle = node.op in ("Identity", "Dropout", "Constant", "CastLike", "Size")
        if known or idle or (before == node.op and node.op in ("Reshape", "Transpose", "Slice")):
            found.append(node)
    return found


def test_random_inputs_fit_the_example() -> None:
    graph = load(EXAMPLE)
    clean = graph.clone()
    PassManager().run(clean, presets.O1)
    for seed in range(3):
        inputs = random_inputs(graph, seed=seed)
        wanted = run_onnxruntime(graph, inputs)
        assert_same_outputs(run_onnxruntime(clean, inputs), wanted, Fidelity.EXACT)
