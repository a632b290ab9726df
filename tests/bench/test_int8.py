"""The bench of models in 8 bits: what it measures is in 8 bits, and its ratios are right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import int8  # noqa: E402
import production  # noqa: E402

from graphopt.accuracy import metrics  # noqa: E402
from graphopt.accuracy.datasets import in_batches  # noqa: E402
from graphopt.accuracy.judge import Judge  # noqa: E402
from graphopt.ir import onnx_io  # noqa: E402
from graphopt.passes.quantize_activations import QuantizeActivations  # noqa: E402
from graphopt.targets.portable import OnnxModel  # noqa: E402
from graphopt.testing import random_inputs, run_onnxruntime  # noqa: E402


def test_tables_layers_and_inputs_are_in_8_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(production, "ROWS", 50)
    graph = production.two_tower(dim=16)
    onnx_io.save(graph, tmp_path / "model.onnx")
    feeds = random_inputs(graph, {"N": 40}, seed=1)
    original = OnnxModel(tmp_path / "model.onnx")
    judge = Judge(original, in_batches(feeds), metrics.find("mean-error"))
    small = int8.in_8_bits(graph, judge, QuantizeActivations(ranges="static"))
    layers = [node for node in small.nodes if node.op in ("Gemm", "MatMul")]
    assert len(layers) == 6
    for layer in layers:
        for value in layer.inputs[:2]:
            assert value is not None and value.producer is not None
            assert value.producer.op == "DequantizeLinear"
    held = [v.const for v in small.constants() if v.const is not None and v.const.size > 1000]
    assert held and all(array.dtype == np.int8 for array in held)
    wanted, found = run_onnxruntime(graph, feeds)["y"], run_onnxruntime(small, feeds)["y"]
    assert np.abs(found - wanted).mean() < 0.1 * np.abs(wanted).mean()


def test_the_fastest_of_the_others_counts() -> None:
    times = {"graphopt": [10.0, 9.0], "ORT float32": [50.0, 49.0]}
    times |= {"ORT dynamic": [40.0, 39.0], "ORT static": [20.0, 19.0]}
    found = int8.ratios({"us": times})
    assert (found["ORT best"], found["ORT float32"]) == (2.0, 5.0)
    assert "ORT best" not in int8.ratios({"us": {"graphopt": [1.0, 1.0]}})
