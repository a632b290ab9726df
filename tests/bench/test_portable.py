"""The tables of node counts and calls: what counts as standard ONNX, and as fused."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import onnx.parser
from bag_loops import loop

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import models  # noqa: E402
import portable  # noqa: E402

import graphopt  # noqa: E402
from graphopt.ir import onnx_io  # noqa: E402
from graphopt.testing import parse  # noqa: E402

MODEL = """<ir_version: 8, opset_import: ["": 18, "com.microsoft": 1, "own": 1]>
m (float[n,4] x, bool c) => (float[n,4] y) {
    a = com.microsoft.FusedGemm(x, x)
    b = If (c) <then_branch = t () => (float[n,4] d) { d = com.microsoft.Gelu(a) },
                else_branch = e () => (float[n,4] f) { f = own.Twice(a) }>
    y = Relu(b)
}
<domain: "own", opset_import: ["": 18]> Twice (x) => (y) { y = Add(x, x) }"""


def test_ops_that_are_not_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(MODEL), path)
    assert portable.node_count(path) == 5
    assert portable.foreign_ops(path) == {"FusedGemm": 1, "Gelu": 1}


def test_reasons_for_more_nodes() -> None:
    nodes = {"source": 9, "graphopt": 8, "a": 6, "b": 7, "c": 8}
    row = {"nodes": nodes, "foreign": {"a": {"FusedGemm": 2}, "b": {}, "c": {}}}
    first, second = portable.reasons_for_more(row)
    assert first.startswith("a has 6 nodes, ours 8; not ONNX among its: 2 FusedGemm")
    assert first.endswith("8 nodes or more (no fewer)")
    assert "not ONNX among its: none" in second and second.endswith("(fewer all the same)")


def test_calls_that_compute_one_op() -> None:
    program = [
        {"kernel": "concat", "ops": ["Concat"]},
        {"kernel": "concat1", "ops": ["Concat"]},
        {"kernel": "fused_slice_cast", "ops": ["Cast"]},
        {"kernel": "fused_add_exp", "ops": ["Add", "Exp"]},
        {"kernel": "dense", "ops": ["graphopt.cpu::Dense"]},
        {"kernel": "topk", "ops": ["TopK"]},
    ]
    assert models.unfused(program) == {"Concat": 2, "TopK": 1}


def test_calls_of_an_artifact(tmp_path: Path) -> None:
    text = """(float[N,4] x) => (float[N,4] y) <float[4,4] w> {
        h = MatMul(x, w) r = Relu(h) y = CumSum(r, axis)
    }"""
    graph = parse(text.replace("float[4,4] w", "float[4,4] w, int64 axis = {1}"))
    artifact = graphopt.compile(graph, output=tmp_path / "m.gopt", verify=False)
    assert models.unfused(artifact.manifest["program"]) == {"CumSum": 1}


def test_bags_in_loops(tmp_path: Path) -> None:
    onnx_io.save(parse(loop()), tmp_path / "bags.onnx")
    onnx_io.save(parse("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"), tmp_path / "none.onnx")
    assert models.loop_bags(tmp_path / "bags.onnx") == 1
    assert models.loop_bags(tmp_path / "none.onnx") == 0
