"""`graphopt::CompressedInteraction`: its meaning, its function body, its types, its kernel."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

TEXT = """(float[N,{h},{d}] x, float[N,{m},{d}] y) => (float[] z)
    <float[{pairs},{k}] w, float[{k}] b> {{
    z = graphopt.CompressedInteraction<activation="{activation}">({inputs}, w, b) }}"""


@pytest.mark.parametrize(
    ("h", "m", "d", "k", "activation"),
    [
        (3, 2, 4, 5, "relu"),
        (4, 4, 8, 33, "relu"),
        (1, 6, 19, 1, "none"),
        (5, 5, 10, 64, "none"),
        (2, 7, 16, 70, "relu"),
        (3, 6, 4, 5, "none"),
    ],
)
def test_the_body_and_the_kernel_mean_the_same(
    h: int, m: int, d: int, k: int, activation: str
) -> None:
    for inputs in ["x, y", "x, x"] if h == m else ["x, y"]:
        text = TEXT.format(h=h, m=m, d=d, k=k, pairs=h * m, activation=activation, inputs=inputs)
        graph = parse(text)
        weights, bias = (node.const for node in next(graph.nodes).inputs[2:] if node is not None)
        kernel = Compiled(graph)
        for size in (0, 1, 5):
            feeds = random_inputs(graph, {"N": size})
            left, right = (feeds[name].astype(np.float64) for name in inputs.split(", "))
            maps = np.reshape(weights, (h, m, k))
            wanted = np.einsum("nhd,nmd,hmk->nkd", left, right, maps) + bias[:, None]
            wanted = np.maximum(wanted, 0) if activation == "relu" else wanted
            for found in (run_onnxruntime(graph, feeds)["z"], kernel(feeds)["z"]):
                # Sums of up to 25 products of numbers near 1.
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("float[N,3,4] x", "float[N,3] x", "it takes float"),
        ("float[6,5] w", "float[7,5] w", "does not weight"),
        ("float[6,5] w", "double[6,5] w", "it takes float"),
    ],
)
def test_what_does_not_fit(old: str, new: str, reason: str) -> None:
    text = TEXT.format(h=3, m=2, d=4, k=5, pairs=6, activation="none", inputs="x, y")
    with pytest.raises(InvalidModelError, match=reason):
        parse(text.replace(old, new))


def test_what_has_no_kernel() -> None:
    text = TEXT.format(h=3, m=2, d=4, k=5, pairs=6, activation="none", inputs="x, y")
    with pytest.raises(UnsupportedOpError, match="not float32"):
        Compiled(parse(text.replace("float", "double")))
    with pytest.raises(UnsupportedOpError, match="not constants"):
        text = text.replace("[N,2,4] y", "[N,2,4] y, float[6,5] w").replace("float[6,5] w, f", "f")
        Compiled(parse(text.replace("<float[6,5] w,", "<")))


def test_it_is_read_back_as_it_was() -> None:
    text = TEXT.format(h=3, m=2, d=4, k=5, pairs=6, activation="relu", inputs="x, y")
    (node,) = onnx_io.from_proto(onnx_io.to_proto(parse(text))).nodes
    assert (node.op, node.attrs) == ("graphopt::CompressedInteraction", {"activation": "relu"})
