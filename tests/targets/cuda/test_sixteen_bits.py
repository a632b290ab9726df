"""Models of float16 and bfloat16: what recommenders compute, next to the same in float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from .conftest import Runner

HALVES = {"float16": (np.dtype(np.float16), 2.0**-10)}
HALVES["bfloat16"] = (np.dtype(ml_dtypes.bfloat16), 2.0**-7)
COMPUTING = """agraph (T[n, 5, 12] x, T[n, 12] u) => (
    T[n, 7] layer, T[n, 5, 5] dots, T[n, 1] fm, T[n, 12] cross, T[n, 5, 12] attended,
    T[n, 12] normal, T[n, 12] units, T[n, 1] cosine, T[n, 12] least, T[n, 12] gelu, T[n, 5, 7] sum
) {
    linear = Gemm (u, w, b)                       layer = Sigmoid (linear)
    turned = Transpose <perm = [0, 2, 1]> (x)     dots = MatMul (x, turned)
    all = ReduceSum <keepdims = 0> (x, one)       square = Mul (all, all)
    squares = Mul (x, x)                          other = ReduceSum <keepdims = 0> (squares, one)
    less = Sub (square, other)                    fm = ReduceMean (less, one)
    crossing = MatMul (u, v)                      times = Mul (u, crossing)
    cross = Add (times, u)                        scores = Softmax (dots)
    attended = MatMul (scores, x)                 normal = LayerNormalization (u, g, g)
    positive = Relu (u)                           exponent = Exp (positive)
    root = Sqrt (exponent)                        units = Div (u, root)
    length = ReduceL2 (u, one)                    of_sum = ReduceL2 (all, one)
    lengths = Mul (length, of_sum)                product = Mul (u, all)
    dot = ReduceSum (product, one)                cosine = Div (dot, lengths)
    smaller = Less (u, all)                       limited = Clip (all, low)
    least = Where (smaller, u, limited)           gelu = Gelu (u)
    sum = MatMul (x, w)
}"""
MOVING = """agraph (T[n, 4] x, int64[n] i, int64[n, 3] j, T[6, n, 4] steps) => (
    T[n, 20] joined, T[n, 8] bag, T[n, 8] mean, T[n, 2] best, int64[n, 2] at, T[n, 4] sums,
    T[n, 4] cut, float[n, 4] wide, T[1, n, 5] gru, T[1, n, 5] lstm
) {
    a = Gather (t, i)                             b = Gather (s, i)
    joined = Concat <axis = 1> (a, x, b)          rows = Gather (t, j)
    bag = ReduceSum <keepdims = 0> (rows, one)    mean = ReduceMean <keepdims = 0> (rows, one)
    best, at = TopK (x, two)                      sums = CumSum (x, axis)
    cut = Slice (joined, two, six, one)           wide = Cast <to = 1> (x)
    none0, gru = GRU <hidden_size = 5> (steps, w3, r3)
    none1, lstm = LSTM <hidden_size = 5> (steps, w4, r4)
}"""
GATES = {"w3": (1, 15, 4), "r3": (1, 15, 5), "w4": (1, 20, 4), "r4": (1, 20, 5)}
RNG = np.random.default_rng(3)


def constants(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    whole = {"one": [1], "two": [2], "six": [6], "axis": 1}
    drawn = {name: RNG.standard_normal(shape) / 2 for name, shape in shapes.items()}
    return {name: np.array(value) for name, value in whole.items()} | drawn


def model(text: str, dtype: str, given: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A text with constants, its floats of type T being `dtype`."""
    text = text.replace("T[", f"{dtype}[".replace("float32", "float"))
    found = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]>\n{text}')
    used = {name for node in found.graph.node for name in node.input}
    for name in used & set(given):
        found.graph.initializer.append(onnx.numpy_helper.from_array(given[name], name))
    return found


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("text", "given"),
    [
        (COMPUTING, constants(w=(12, 7), b=(7,), v=(12, 1), g=(12,), low=())),
        (MOVING, constants(t=(9, 8), s=(9, 8), **GATES)),
    ],
    ids=["computing", "moving"],
)
def test_computed_in_float32(
    text: str, given: dict[str, np.ndarray], dtype: str, run_model: Runner
) -> None:
    storage, epsilon = HALVES[dtype]
    narrow = {k: v.astype(storage) if v.dtype.kind == "f" else v for k, v in given.items()}
    wide = {k: v.astype(np.float32) if v.dtype == storage else v for k, v in narrow.items()}
    reference = ReferenceEvaluator(model(text, "float32", wide))
    feeds = []
    for batch in (1, 7, 70):
        shapes = {"x": (batch, 5, 12) if text is COMPUTING else (batch, 4), "u": (batch, 12)}
        shapes["steps"] = (6, batch, 4)
        feed = {name: RNG.standard_normal(shape).astype(storage) for name, shape in shapes.items()}
        feed |= {"i": RNG.integers(0, 9, batch), "j": RNG.integers(0, 9, (batch, 3))}
        feeds.append({name: feed[name] for name in reference.input_names})
    results = run_model(model(text, dtype, narrow), *feeds, passes="O2")
    for feed, found in zip(feeds, results):
        widened = {k: v.astype(np.float32) if v.dtype == storage else v for k, v in feed.items()}
        expected = dict(zip(reference.output_names, reference.run(None, widened)))
        for name, array in expected.items():
            result = found[name]
            assert result.dtype == (array.dtype if name in ("at", "wide") else storage), name
            # Some ops one after the other, on numbers about 1; each rounds by half of epsilon.
            scale = 4 * epsilon * max(1, np.abs(array).max())
            np.testing.assert_allclose(
                result.astype(np.float64), array, 4 * epsilon, scale, err_msg=name
            )
