"""Layers on windows that overlap, against ONNX Runtime's convolutions."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.targets.cpu.kernels.windows import Sliding, window_params
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

WINDOWS = """(float[N,{length},{width}] x{more_in}) => (float[] y{more}) <int64{places} p,
    int64[3] s = {{-1, {count}, {elements}}}, float[{elements},{n}] w, float[{n}] b>
    {{ g = Gather<axis=1>(x, p) r = Reshape(g, s) m = MatMul(r, w) a = Add(m, b) {body} }}"""


def graph_of(
    length: int, width: int, kernel: int, n: int, dilation: int = 1, **other: str
) -> Graph:
    sliding = Sliding(length, width, kernel, dilation)
    places = np.add.outer(np.arange(sliding.count), np.arange(kernel) * dilation)
    values = ", ".join(map(str, places.reshape(-1)))
    text = WINDOWS.format(
        length=length,
        width=width,
        count=sliding.count,
        elements=sliding.elements,
        n=n,
        places="PLACES",
        **{"body": "y = Relu(a)", "more": "", "more_in": "", **other},
    )
    shape = f"[{sliding.count},{kernel}]"
    return parse(text.replace("PLACES p", f"{shape} p = {{{values}}}"))


def ops_of(source: Graph) -> list[str]:
    legal = source.clone()
    legalize(legal, lanes=16)
    return [node.op_type for node in legal.nodes]


@pytest.mark.parametrize(
    ("length", "width", "kernel", "dilation", "n"),
    [
        (9, 4, 3, 1, 8),  # several samples together
        (9, 4, 3, 1, 40),
        (20, 8, 1, 1, 3),
        (20, 8, 20, 1, 8),  # a whole sample
        (31, 16, 2, 1, 4),  # several blocks a sample
        (31, 16, 2, 1, 13),
        (11, 6, 3, 4, 1),  # dilated, as in NextItNet
        (11, 6, 3, 4, 16),
        (10, 5, 3, 1, 7),  # of odd length: vectors are not folded
        (50, 7, 2, 2, 150),
        (20, 64, 3, 1, 1000),  # weights that go over all samples at once
    ],
)
def test_windows_are_read_in_place(
    length: int, width: int, kernel: int, dilation: int, n: int
) -> None:
    source = graph_of(length, width, kernel, n, dilation)
    assert ops_of(source) == ["WindowProducts"]
    compiled = Compiled(source)
    feeds = random_inputs(source, {"N": 13})
    feeds["x"][3, 0, 0] = np.nan
    together = compiled(feeds)["y"]
    # sums of at most 192 products in another order
    wanted = run_onnxruntime(source, feeds)["y"]
    np.testing.assert_allclose(together, wanted, rtol=2e-5, atol=2e-5)
    for rows in (slice(4, 5), slice(0, 6)):
        alone = compiled({"x": feeds["x"][rows]})["y"]
        np.testing.assert_array_equal(alone, together[rows])
    assert compiled({"x": feeds["x"][:0]})["y"].shape == (0, *together.shape[1:])


def test_operands_at_the_store() -> None:
    body = "r1 = Sigmoid(a) h = Mul(r1, u) y = Add(h, v)"
    given = ", float[N,6,7] u, float[6,7] v"
    source = graph_of(8, 4, 3, 7, body=body, more_in=given)
    feeds = random_inputs(source, {"N": 5})
    wanted = run_onnxruntime(source, feeds)["y"]
    np.testing.assert_allclose(Compiled(source)(feeds)["y"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("o = Exp(g) y = Relu(a)", ", float[] o"),
        ("o = Exp(r) y = Relu(a)", ", float[] o"),
    ],
)
def test_windows_that_others_read_are_joined(body: str, more: str) -> None:
    source = graph_of(9, 4, 3, 5, body=body, more=more)
    assert "WindowProducts" not in ops_of(source)
    feeds = random_inputs(source, {"N": 3})
    wanted = run_onnxruntime(source, feeds)
    for name, array in Compiled(source)(feeds).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "places"),
    [
        ("[3,2]", "0, 1, 2, 3, 4, 5"),  # by two positions
        ("[4,2]", "0, 1, 1, 2, 2, 3, 3, 4"),  # not to the end
        ("[5,2]", "1, 0, 2, 1, 3, 2, 4, 3, 5, 4"),  # backwards
        ("[6,1]", "0, 1, 2, 2, 4, 5"),
        ("[5,2]", "1, 2, 2, 3, 3, 4, 4, 5, 5, 5"),
    ],
)
def test_other_places_stay(shape: str, places: str) -> None:
    count, kernel = map(int, shape[1:-1].split(","))
    source = parse(f"""(float[N,6,4] x) => (float[] y) <int64{shape} p = {{{places}}},
        int64[3] s = {{-1, {count}, {4 * kernel}}}, float[{4 * kernel},5] w>
        {{ g = Gather<axis=1>(x, p) r = Reshape(g, s) y = MatMul(r, w) }}""")
    assert "WindowProducts" not in ops_of(source)
    feeds = random_inputs(source, {"N": 3})
    wanted = run_onnxruntime(source, feeds)["y"]
    np.testing.assert_allclose(Compiled(source)(feeds)["y"], wanted, rtol=1e-5, atol=1e-5)


def test_rows_of_another_shape_stay() -> None:
    source = parse("""(float[N,6,4] x) => (float[] y) <float[16,5] w,
        int64[5,2] p = {0, 1, 1, 2, 2, 3, 3, 4, 4, 5}, int64[2] s = {-1, 16}>
        { g = Gather<axis=1>(x, p) r = Reshape(g, s) y = MatMul(r, w) }""")
    assert "WindowProducts" not in ops_of(source)
    feeds = random_inputs(source, {"N": 2})
    wanted = run_onnxruntime(source, feeds)["y"]
    np.testing.assert_allclose(Compiled(source)(feeds)["y"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_narrow_layers_fill_their_vectors(lanes: int) -> None:
    folds = [window_params(Sliding(10, 4, 3), n, lanes).fold for n in (1, 4, 8, 16)]
    assert folds == {4: [4, 1, 1, 1], 8: [4, 2, 1, 1], 16: [4, 4, 2, 1]}[lanes]
    assert window_params(Sliding(10, 3, 3), 1, lanes).fold == 1  # of 9 elements
