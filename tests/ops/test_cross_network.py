"""`graphopt::CrossNetwork`: what it means, its function body, its types, its kernel."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

TEXT = """(float[N,{d}] x) => (float[] y) <float[{d},{k}] w, float[{k}] s, float[{d}] b> {{
    y = graphopt.CrossNetwork(x, w, s, b) }}"""


def expected(x: np.ndarray, w: np.ndarray, s: np.ndarray, b: np.ndarray) -> np.ndarray:
    multiple = np.ones((len(x), 1))
    for column, shift in zip(w.T, s):
        multiple = multiple * (1 + x.astype(np.float64) @ column[:, None]) + shift
    return multiple * x + b


@pytest.mark.parametrize(("d", "k"), [(4, 1), (16, 3), (37, 2), (1, 4)])
def test_the_body_and_the_kernel_mean_the_same(d: int, k: int) -> None:
    graph = parse(TEXT.format(d=d, k=k))
    (node,) = graph.nodes
    constants = [value.const for value in node.inputs[1:] if value is not None]
    kernel = Compiled(graph)
    for size in (0, 1, 5):
        feeds = random_inputs(graph, {"N": size})
        wanted = expected(feeds["x"], *constants)  # type: ignore[arg-type]
        for found in (run_onnxruntime(graph, feeds)["y"], kernel(feeds)["y"]):
            # Products of up to four sums of up to 37 products of numbers near 1.
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new"), [("float[N,4]", "float[N,2,4]"), ("[4,2] w", "[5,2] w"), ("[2] s", "[3] s")]
)
def test_what_does_not_fit(old: str, new: str) -> None:
    with pytest.raises(InvalidModelError, match="it takes"):
        parse(TEXT.format(d=4, k=2).replace(old, new))


def test_what_has_no_kernel() -> None:
    with pytest.raises(UnsupportedOpError, match="float32"):
        Compiled(parse(TEXT.format(d=4, k=2).replace("float", "double")))


def test_it_is_read_back_as_it_was() -> None:
    (node,) = onnx_io.from_proto(onnx_io.to_proto(parse(TEXT.format(d=4, k=2)))).nodes
    assert (node.op, node.attrs) == ("graphopt::CrossNetwork", {})
