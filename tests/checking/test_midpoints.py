"""Numbers in the middle of two codes may become either; all else has to agree as ever."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import graphopt
from graphopt.checking import midpoints
from graphopt.checking.verification import Original
from graphopt.errors import VerificationError
from graphopt.ir import onnx_io
from graphopt.pipeline.report import Report
from graphopt.targets.portable import OnnxModel
from graphopt.testing import parse

# Half a code is 1/4; ONNX Runtime adds the zero point, which is odd, before it rounds to even.
ADDED = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g (float[N,2] x) =>
    (float[N,3] y) <float s = {0.25}, float t = {0.5}, uint8 z = {100}, uint8 odd = {123},
    float[2,3] w = {1, 2, 3, 4, 5, 6}> { q = QuantizeLinear(x, s, z)
    a = com.microsoft.QLinearAdd(q, s, z, q, s, z, t, odd)
    b = com.microsoft.QLinearMul(q, s, z, q, s, z, t, odd)
    c = DequantizeLinear(a, t, odd) d = DequantizeLinear(b, t, odd) e = Add(c, d)
    y = MatMul(e, w) }"""
X = np.array([[0.5, 1], [0.5, 2], [1.5, 1.5], [1, 3]], np.float32)  # squares of 0.25, 2.25: middles


class Answers:
    """A result of which each answer is known."""

    def __init__(self, y: np.ndarray) -> None:
        self.y = y

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {"y": self.y}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(ADDED), path)
    return path


def test_a_code_that_onnxruntime_rounds_otherwise_is_no_difference(file: Path) -> None:
    report = Report()
    compiled = graphopt.compile(file, "onnxruntime", inputs={"x": X}, report=report)
    assert any("middle of two codes" in warning for warning in report.warnings)
    assert isinstance(compiled, OnnxModel)
    found, source = (m.as_written().run({"x": X})["y"] for m in (compiled, OnnxModel(file)))
    assert not np.array_equal(found, source)


@pytest.mark.parametrize(("row", "codes"), [(3, 1), (0, 40)])
def test_rows_elsewhere_and_larger_changes_are_differences(
    file: Path, row: int, codes: int
) -> None:
    y = OnnxModel(file).as_written().run({"x": X})["y"]
    y[row] += 0.5 * codes
    original = Original(onnx_io.load(file), file, {"x": X}, None)
    with pytest.raises(VerificationError, match=rf"\[{row}, 0\]"):
        original.verify(original.graph, lambda: [Answers(y)], Report())


def test_what_rounds_nothing_has_no_slack() -> None:
    graph = parse("(float[N,2] x) => (float[N,2] y) { y = Neg(x) }")
    assert midpoints.slack(graph, [], [], lambda path: None) is None


def test_ranges_that_are_found_when_the_model_runs() -> None:
    """The middle of two codes of [0, 255] is 100.5; the other numbers are whole."""
    graph = parse("""(float[N,2] x) => (float[N,2] y) {
        q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }""")
    x = np.array([[0, 255], [100.5, 3], [7, 9]], np.float32)

    def opened(path: Path) -> Any:
        return OnnxModel(path).run

    with np.errstate(all="raise"):
        source = graphopt.compile(graph, "onnxruntime", verify=False).run({"x": x})
        (found,) = midpoints.slack(graph, [source], [{"x": x}], opened) or []
    assert found["y"].shape == (3, 1)
    assert found["y"][1] > 1.9
    assert found["y"][2] < 0.1
