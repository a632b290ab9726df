"""Compiled graphs held against ONNX Runtime."""

from __future__ import annotations

import numpy as np

from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime


def agree(
    text: str,
    *feeds: dict[str, np.ndarray],
    opset: int = 18,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    """Check that one compiled program gives the answers of ONNX Runtime for every feed.

    Integers, and floats without a tolerance, agree to the bit.
    """
    graph = parse(text, opset)
    compiled = Compiled(graph)
    for feed in feeds:
        expected, found = run_onnxruntime(graph, feed), compiled(feed)
        for name, array in expected.items():
            assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
            if rtol and array.dtype.kind == "f":
                np.testing.assert_allclose(found[name], array, rtol, atol, err_msg=name)
            else:
                np.testing.assert_array_equal(found[name], array, name)


def agree_on_random_inputs(
    text: str, *sizes: dict[str, int], opset: int = 20, rtol: float, atol: float
) -> None:
    """The same on random inputs, of all the `sizes` that are given."""
    graph = parse(text, opset)
    feeds = [random_inputs(graph, each) for each in sizes or ({},)]
    agree(text, *feeds, opset=opset, rtol=rtol, atol=atol)
