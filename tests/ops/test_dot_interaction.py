"""`graphopt::DotInteraction`: what it means, its function body, its types, its kernel."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime


def graph_of(features: int, dim: int, pairs: list[int], beside: int = 0) -> Graph:
    given, read = (f", float[N,{beside}] head", ", head") if beside else ("", "")
    return parse(
        f"""(float[N,{features},{dim}] x{given}) => (float[] y) {{
        y = graphopt.DotInteraction<pairs=[{", ".join(map(str, pairs))}]>(x{read}) }}"""
    )


def expected(feeds: dict[str, np.ndarray], pairs: list[int]) -> np.ndarray:
    x = feeds["x"].astype(np.float64)
    count = x.shape[1]
    products = np.einsum("nfd,ngd->nfg", x, x).reshape(len(x), count * count)[:, pairs]
    return np.concatenate([feeds.get("head", products[:, :0]), products], axis=1)


def triangle(features: int, *, itself: bool = False) -> list[int]:
    return [i * features + j for i in range(features) for j in range(i + itself)]


CASES = [
    (4, 16, triangle(4), 16),
    (9, 16, triangle(9, itself=True), 0),
    (14, 64, triangle(14), 7),
    (3, 2, triangle(3), 2),
    (5, 12, list(range(25)), 0),
    (3, 7, [2, 2, 6], 1),
    (2, 256, [1], 33),
    (6, 8, [35, 0, 7, 5, 30], 0),
]


@pytest.mark.parametrize(("features", "dim", "pairs", "beside"), CASES)
def test_the_body_and_the_kernel_mean_the_same(
    features: int, dim: int, pairs: list[int], beside: int
) -> None:
    graph = graph_of(features, dim, pairs, beside)
    kernel = Compiled(graph)
    for size in (0, 1, 3, 20):
        feeds = random_inputs(graph, {"N": size})
        wanted = expected(feeds, pairs)
        for found in (run_onnxruntime(graph, feeds)["y"], kernel(feeds)["y"]):
            # Sums of up to 256 products of numbers near 1, in an order of their own.
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


def test_nan_and_infinity_stay_in_their_products() -> None:
    graph = graph_of(4, 16, triangle(4))
    feeds = random_inputs(graph, {"N": 2})
    feeds["x"][0, 1, 3] = np.nan
    feeds["x"][1, 2, 5] = np.inf
    found = Compiled(graph)(feeds)["y"]
    assert np.isnan(found[0]).tolist() == [True, False, True, False, True, False]
    assert np.isinf(found[1]).tolist() == [False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[N,4] x) => (float[] y) { y = graphopt.DotInteraction<pairs=[1]>(x) }", "features"),
        ("(int64[N,4,2] x) => (int64[] y) { y = graphopt.DotInteraction<pairs=[1]>(x) }", "float"),
        ("(float[N,4,2] x) => (float[] y) { y = graphopt.DotInteraction<pairs=[16]>(x) }", "pairs"),
        ("(float[N,4,2] x) => (float[] y) { y = graphopt.DotInteraction(x) }", "pairs"),
        ("(float[N,M,2] x) => (float[] y) { y = graphopt.DotInteraction<pairs=[1]>(x) }", "pairs"),
        (
            "(float[N,4,2] x, float[4] h) => (float[] y) {"
            " y = graphopt.DotInteraction<pairs=[1]>(x, h) }",
            "beside",
        ),
    ],
)
def test_what_does_not_fit(text: str, reason: str) -> None:
    with pytest.raises(InvalidModelError, match=reason):
        parse(text)


def test_other_dtypes_have_no_kernel() -> None:
    text = "(double[N,4,2] x) => (double[] y) { y = graphopt.DotInteraction<pairs=[1]>(x) }"
    with pytest.raises(UnsupportedOpError, match="not float32"):
        Compiled(parse(text))


def test_it_is_read_back_as_it_was() -> None:
    graph = graph_of(4, 2, triangle(4), 3)
    again = onnx_io.from_proto(onnx_io.to_proto(graph))
    (node,) = again.nodes
    assert node.op == "graphopt::DotInteraction"
    assert node.attr("pairs") == triangle(4)
