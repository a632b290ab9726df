"""`graphopt::BiInteraction`: what it means, its function bodies, its types, its kernel."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

TEXT = "(float[N,{f},{d}] x) => (float[] y) {{ y = graphopt.BiInteraction{attrs}(x) }}"


@pytest.mark.parametrize(("f", "d"), [(3, 4), (8, 16), (26, 10), (1, 1), ("F", 33)])
@pytest.mark.parametrize(
    ("attrs", "scale", "pooled"),
    [("", 1.0, False), ("<scale=0.5>", 0.5, False), ("<pooled=1, scale=-2.0>", -2.0, True)],
)
def test_the_body_and_the_kernel_mean_the_same(
    f: int | str, d: int, attrs: str, scale: float, pooled: bool
) -> None:
    graph = parse(TEXT.format(f=f, d=d, attrs=attrs))
    kernel = Compiled(graph)
    for size in (0, 1, 5):
        feeds = random_inputs(graph, {"N": size})
        x = feeds["x"].astype(np.float64)
        wanted = scale * (x.sum(1) ** 2 - (x**2).sum(1))
        wanted = wanted.sum(1, keepdims=True) if pooled else wanted
        for found in (run_onnxruntime(graph, feeds)["y"], kernel(feeds)["y"]):
            # The difference of sums of up to 260 squares of numbers near 1.
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("of", ["float[N,4]", "int64[N,3,4]"])
def test_what_does_not_fit(of: str) -> None:
    with pytest.raises(InvalidModelError, match="features must be"):
        parse(f"({of} x) => (float[] y) {{ y = graphopt.BiInteraction(x) }}")


@pytest.mark.parametrize("of", ["double[N,3,4]", "float[N,3,D]"])
def test_what_has_no_kernel(of: str) -> None:
    graph = parse(f"({of} x) => (float[] y) {{ y = graphopt.BiInteraction(x) }}")
    with pytest.raises(UnsupportedOpError, match="not float32 of known length"):
        Compiled(graph)


def test_it_is_read_back_as_it_was() -> None:
    graph = parse(TEXT.format(f=3, d=4, attrs="<pooled=1, scale=0.5>"))
    (node,) = onnx_io.from_proto(onnx_io.to_proto(graph)).nodes
    assert (node.op, node.attrs) == ("graphopt::BiInteraction", {"pooled": 1, "scale": 0.5})
