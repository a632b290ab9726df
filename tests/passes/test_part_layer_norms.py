"""Computed sums that are normalized are written as Sum; others stay."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import graphopt
from graphopt.explanation import explain
from graphopt.passes.part_layer_norms import PartLayerNorms
from graphopt.testing import assert_rewrites, assert_unchanged, parse

TEXT = """(float[N,5,4] x, float[N,5,4] r) => (OUTPUTS) <float[4] w, float[5,4] c> { BODY }"""
BODY_OPS = ["Add", "LayerNormalization"]
BODY = "s = Add(x, r) y = LayerNormalization(s, w)"


@pytest.mark.parametrize("after", ["", " z = Relu(s)"])
def test_they_are_sums(after: str) -> None:
    outputs = "float[] y, float[] z" if after else "float[] y"
    text = TEXT.replace("OUTPUTS", outputs)
    wanted = BODY.replace("Add", "Sum") + after
    assert_rewrites(
        PartLayerNorms(), text.replace("BODY", BODY + after), text.replace("BODY", wanted)
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = Add(x, c) y = LayerNormalization(s, w)", "a constant"),
        ("s = Add(x, r) y = Relu(s)", "not normalized"),
        ("n = Relu(x) s = Add(n, r) k = Relu(s) y = LayerNormalization(k, w)", "not normalized"),
    ],
)
def test_others_stay(body: str, reason: str) -> None:
    text = TEXT.replace("OUTPUTS", "float[] y").replace("BODY", body)
    assert_unchanged(PartLayerNorms(), text, reason)


def test_portable_models_have_them(tmp_path: Path) -> None:
    """Also the one inside an artifact; kernels are made of the sum as it was."""
    source = parse(TEXT.replace("OUTPUTS", "float[] y").replace("BODY", BODY))
    graphopt.compile(source, "onnxruntime", output=tmp_path / "portable.onnx")
    graphopt.compile(source, "cpu", output=tmp_path / "m.gopt")
    for path in (tmp_path / "portable.onnx", tmp_path / "m.gopt" / "model.onnx"):
        assert [node.op_type for node in onnx.load(path).graph.node] == ["Sum", *BODY_OPS[1:]]
    assert explain(source, "cpu").nodes[0].op == "Add"
    assert "Sum" not in explain(source, "cpu").left
    assert "Sum" in explain(source, "onnxruntime").left
