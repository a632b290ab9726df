"""Compiled graphs held against ONNX Runtime."""

from __future__ import annotations

import numpy as np

from graphopt.testing import Compiled, parse, run_onnxruntime


def agree(text: str, *feeds: dict[str, np.ndarray], opset: int = 18) -> None:
    """Check that one compiled program gives the bits of ONNX Runtime for every feed."""
    graph = parse(text, opset)
    compiled = Compiled(graph)
    for feed in feeds:
        expected, found = run_onnxruntime(graph, feed), compiled(feed)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, name)
            assert found[name].dtype == array.dtype, name
