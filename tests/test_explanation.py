"""Each source node has one fate, and the passes that decided it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import graphopt
from graphopt.explanation import Fate, SourceNode, explain
from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph
from graphopt.testing import dump, parse

MODEL = """(float[N,4] x) => (float[N,3] y, float[N] t)
<float[4,3] w, float[3] b, float[3] k, int64[1] one = {1}> {
    same = Identity(x)
    kb = Add(k, b)
    m = MatMul(same, w)
    z = Add(m, kb)
    y = Relu(z)
    p = Softmax(x)
    r = ReduceMax<keepdims=1>(p, one)
    t = Squeeze(r, one)
}"""


def model() -> Graph:
    return parse(MODEL)


def fates(target: str, passes: str = "O2") -> dict[str, SourceNode]:
    return {node.name: node for node in explain(model(), target, passes=passes).nodes}


def test_portable() -> None:
    found = fates("onnxruntime")
    assert list(found) == ["same", "kb", "m", "z", "y", "p", "r", "t"]
    assert {name: node.fate for name, node in found.items()} == {
        "same": Fate.REMOVED,
        "kb": Fate.FOLDED,
        "m": Fate.FUSED,
        "z": Fate.FUSED,
        "y": Fate.KEPT,
        "p": Fate.KEPT,
        "r": Fate.KEPT,
        "t": Fate.REWRITTEN,
    }
    assert found["same"].by == ("canonicalize",)
    assert found["kb"].by == ("fold-constants",)
    assert (found["m"].into, found["m"].by) == (("Gemm",), ("fuse-gemm",))
    assert found["y"].by == ()
    assert (found["t"].into, found["t"].by) == (("Reshape",), ("simplify-reshapes",))


def test_compiled() -> None:
    found = fates("cpu")
    for name in ("m", "z", "y"):
        node = found[name]
        assert (node.fate, node.into, node.others) == (Fate.FUSED, ("graphopt.cpu::Dense",), 2)
        assert node.by == (("cpu",) if name == "y" else ("fuse-gemm", "cpu"))
    assert found["p"].fate is Fate.KEPT


def test_without_passes_all_is_kept() -> None:
    found = fates("onnxruntime", "O0")
    assert {node.fate for node in found.values()} == {Fate.KEPT}
    assert not any(node.by for node in found.values())


def test_reasons_of_what_is_left() -> None:
    text = "(float[N,4] x, int64[N] i) => (float[N,3] y) <float[4,3] t> { y = Gather(t, i) }"
    (node,) = explain(parse(text), "onnxruntime", passes="simplify-slices").nodes
    assert node.reasons == ("gather_to_slice: the indices are not a constant vector",)


def test_a_body_shares_the_fate_of_its_loop() -> None:
    text = """(float[N,2] x) => (float[N,2] y) <int64 trip = {2}, bool go = {1}> {
        y = Loop <body = b (int64 i, bool c, float[N,2] s) => (bool d, float[N,2] u)
            { d = Identity(c) u = Add(s, s) }> (trip, go, x)
    }"""
    found = {node.name: node for node in explain(parse(text), "onnxruntime").nodes}
    assert (found["u"].op, found["u"].inside) == ("Add", "y")
    assert found["u"].into == ("Add",)
    assert "unroll-loops" in found["y"].by
    (kept,) = [n for n in explain(parse(text), "onnxruntime", passes="O0").nodes if n.name == "u"]
    assert kept.fate is Fate.KEPT


def test_public_name(tmp_path: Path) -> None:
    onnx_io.save(model(), tmp_path / "m.onnx")
    steps: list[str] = []
    found = graphopt.explain(
        tmp_path / "m.onnx", "onnxruntime", passes="dce", progress=steps.append
    )
    assert isinstance(found, graphopt.Explanation)
    assert (found.pipeline, found.target, steps) == ("dce", "onnxruntime", ["dce", "onnxruntime"])
    assert found.left["Add"] == 2
    data = json.loads(found.to_json())
    assert data["nodes"][0] == {
        "name": "same",
        "op": "Identity",
        "inside": "",
        "fate": "kept",
        "into": ["Identity"],
        "others": 0,
        "by": [],
        "reasons": [],
    }


@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
def test_the_graph_is_not_changed(target: str) -> None:
    graph = model()
    before = dump(graph)
    explain(graph, target)
    assert dump(graph) == before
