"""Elementwise ops against ONNX's reference implementation, with the values that break shortcuts."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt.errors import InputError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.testing import Compiled, parse

FUNCTIONS = (
    ["Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Round", "Sigmoid"]
    + ["Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh", "Relu", "Selu", "HardSigmoid"]
    + ["HardSwish", "LeakyRelu<alpha=0.2>", "Elu<alpha=1.5>", "ThresholdedRelu<alpha=0.5>"]
    + ["Shrink<bias=0.25,lambd=0.5>", "Gelu", 'Gelu<approximate="tanh">', "Mish"]
)
INVERSE = ["Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"]
SPECIAL = np.array(
    [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-40, 3e38, -3e38, 0.3, 1e8, 2.5, 3.5, -2.5, 88.8]
)
OTHER = np.array([1, 0.0, np.nan, np.inf, -np.inf, 1, 2, 0, 3, np.nan, 0.3, 1, -0.0, 3.5, 7, -104])


def agree(text: str, feeds: dict[str, np.ndarray], rtol: float, atol: float = 1e-37) -> None:
    """Compiled results equal those of ONNX's reference implementation."""
    graph = parse(text, opset=22)
    with np.errstate(all="ignore"):
        expected = ReferenceEvaluator(onnx_io.to_proto(graph)).run(None, feeds)
    found = Compiled(graph)(feeds)
    for name, array in zip(graph.output_names, expected):
        wanted = np.asarray(array)
        assert found[name].dtype == wanted.dtype, name
        if wanted.dtype.kind in "fV":
            np.testing.assert_allclose(
                found[name].astype(np.float64), wanted.astype(np.float64), rtol, atol, err_msg=name
            )
        else:
            np.testing.assert_array_equal(found[name], wanted, err_msg=name)


def each(ops: list[str], onnx_type: str, result: str = "") -> str:
    """A graph that applies every op to the same input."""
    outs = ", ".join(f"{result or onnx_type}[N] y{k}" for k in range(len(ops)))
    body = " ".join(f"y{k} = {op}(x)" for k, op in enumerate(ops))
    return f"({onnx_type}[N] x) => ({outs}) {{ {body} }}"


# float32 functions are vector code of up to 2.5 ulp. float16 results are rounded once, the
# reference rounds every step. Gelu and Elu subtract from 1 near it, which leaves an absolute error.
@pytest.mark.parametrize(
    ("onnx_type", "dtype", "rtol", "atol"),
    [
        ("float", "float32", 1e-6, 5e-7),
        ("double", "float64", 1e-12, 1e-15),
        ("float16", "float16", 4e-3, 4e-3),
    ],
)
def test_functions(onnx_type: str, dtype: str, rtol: float, atol: float) -> None:
    x = np.concatenate([np.linspace(-6, 6, 41), [0.0, 11.0]])
    # The reference computes these in single precision.
    ops = [
        op
        for op in FUNCTIONS
        if dtype != "float64" or not op.startswith(("Erf", "Gelu", "HardSwish"))
    ]
    agree(each(ops, onnx_type), {"x": x.astype(dtype)}, rtol, atol)


def test_trigonometry() -> None:
    inside = np.linspace(-0.99, 0.99, 37).astype(np.float32)
    agree(each([op for op in INVERSE if op != "Acosh"], "float"), {"x": inside}, 1e-6)
    agree(each(["Acosh"], "float"), {"x": np.linspace(1, 9, 9, dtype=np.float32)}, 1e-6)


def test_special_values_of_functions() -> None:
    exact = [
        "Abs",
        "Neg",
        "Floor",
        "Ceil",
        "Round",
        "Relu",
        "Sign",
        "Reciprocal",
        "Sqrt",
        "Softsign",
    ]
    limits = ["Exp", "Log", "Tanh", "Sigmoid", "Erf", "Softplus", "Elu", "HardSigmoid"]
    agree(each([*exact, *limits], "float"), {"x": SPECIAL.astype(np.float32)}, 1e-6)


def test_classification() -> None:
    ops = ["IsNaN", "IsInf", "IsInf<detect_negative=0>", "IsInf<detect_positive=0>"]
    agree(each(ops, "float", "bool"), {"x": SPECIAL.astype(np.float32)}, 0)


@pytest.mark.parametrize("onnx_type", ["float", "float16", "double"])
def test_special_values_of_operators(onnx_type: str) -> None:
    dtype = {"float": "float32", "double": "float64"}.get(onnx_type, onnx_type)
    ops = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum", "Mean", "PRelu", "Mod<fmod=1>"]
    tests = ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]
    outs = [f"{onnx_type}[N] y{k}" for k in range(len(ops))]
    outs += [f"bool[N] t{k}" for k in range(len(tests))]
    body = " ".join(f"y{k} = {op}(x, z)" for k, op in enumerate(ops))
    body += " ".join(f" t{k} = {op}(x, z)" for k, op in enumerate(tests))
    text = f"({onnx_type}[N] x, {onnx_type}[N] z) => ({', '.join(outs)}) {{ {body} }}"
    with np.errstate(over="ignore"):
        agree(
            text,
            {"x": SPECIAL.astype(dtype), "z": OTHER.astype(dtype)},
            1e-6 if dtype != "float16" else 2e-3,
        )


def test_real_number_identities_do_not_hold() -> None:
    """What simplifies for real numbers must still be rounded, and still be NaN."""
    agree(
        """(float[N] x, float[N] z) => (float[N] a, float[N] b, bool[N] c, bool[N] d, float[N] e) {
            big = Constant<value_float = 1e8>()  zero = Constant<value_float = 0.0>()
            s = Add(x, big)  a = Sub(s, big)  p = Mul(x, z)  b = Sub(p, p)
            l = Less(x, z)  c = Not(l)  d = Equal(x, x)  e = Mul(x, zero)
        }""",
        {"x": SPECIAL.astype(np.float32), "z": OTHER.astype(np.float32)},
        0,
    )


def integers(dtype: str) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.array([info.min, info.min + 1, 0, 1, 2, 7, info.max - 1, info.max], dtype)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"])
def test_integers(dtype: str) -> None:
    """Results wrap; division rounds to zero and the remainder has the divisor's sign."""
    a = np.repeat(integers(dtype), 8)
    b = np.tile(integers(dtype), 8)
    ops = ["Add", "Sub", "Mul", "Max", "Min", "BitwiseAnd", "BitwiseOr", "BitwiseXor"]
    outs = ", ".join(f"{dtype}[N] y{k}" for k in range(len(ops)))
    body = " ".join(f"y{k} = {op}(a, b)" for k, op in enumerate(ops))
    text = f"({dtype}[N] a, {dtype}[N] b) => ({outs}, bool[N] t) {{ {body} t = Less(a, b) }}"
    agree(text, {"a": a, "b": b}, 0)


def test_integer_division_never_traps() -> None:
    """x / 0 is 0, and the least integer over -1 wraps; the processor would stop on both."""
    text = """(int32[N] a, int32[N] b) => (int32[N] q, int32[N] r, int32[N] f) {
        q = Div(a, b)  r = Mod(a, b)  f = Mod<fmod=1>(a, b)
    }"""
    least = np.iinfo(np.int32).min
    a = np.array([7, -7, 7, -7, 5, least, -1, 0], np.int32)
    b = np.array([2, 2, -2, -2, 0, -1, 3, 5], np.int32)
    found = Compiled(parse(text))({"a": a, "b": b})
    assert found["q"].tolist() == [3, -3, -3, 3, 0, least, 0, 0]
    assert found["r"].tolist() == [1, 1, -1, -1, 0, 0, 2, 0]
    assert found["f"].tolist() == [1, -1, 1, -1, 0, 0, -1, 0]


def test_powers() -> None:
    agree(
        """(float[N] x, int32[N] i, int64[N] k) => (float[N] a, float[N] b, float[N] c, int32[N] d,
            int64[N] e) {
            two = Constant<value_float = 2.0>()  half = Constant<value_float = 0.5>()
            a = Pow(x, two)  b = Pow(x, half)  c = Pow(x, k)  d = Pow(i, k)  e = Pow(k, two)
        }""",
        {
            "x": np.array([4, -2, -0.0, 0.5, np.inf], np.float32),
            "i": np.array([2, -3, 0, 1, -1], np.int32),
            "k": np.array([3, 5, 0, 40, 7]),
        },
        1e-6,
    )


def test_shifts_out_of_range() -> None:
    text = """(uint8[N] a, uint8[N] s) => (uint8[N] l, uint8[N] r) {
        l = BitShift<direction="LEFT">(a, s)  r = BitShift<direction="RIGHT">(a, s) }"""
    a, s = np.array([255, 255, 3, 128, 1], np.uint8), np.array([0, 8, 7, 200, 1], np.uint8)
    found = Compiled(parse(text))({"a": a, "s": s})
    assert found["l"].tolist() == [255, 0, 128, 0, 2]
    assert found["r"].tolist() == [255, 0, 0, 0, 0]


def test_logic_and_choice() -> None:
    agree(
        """(bool[4] p, bool[4] q, float[N,1] x, int64[4] i) => (bool[4] a, bool[4] o, bool[4] r,
            bool[4] n, bool[4] e, float[N,4] w, int64[4] b) {
            a = And(p, q)  o = Or(p, q)  r = Xor(p, q)  n = Not(p)  e = Equal(p, q)
            c = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>()
            w = Where(p, x, c)  b = BitwiseNot(i)
        }""",
        {
            "p": np.array([0, 0, 1, 1], bool),
            "q": np.array([0, 1, 0, 1], bool),
            "x": np.array([[9], [8], [7]], np.float32),
            "i": np.array([0, 1, -1, 5]),
        },
        0,
    )


def test_clip_keeps_nan_and_the_upper_limit_wins() -> None:
    agree(
        """(float[N] x, float low, float high) => (float[N] a, float[N] b, float[N] c) {
            a = Clip(x, low, high)  b = Clip(x, low)  c = Clip(x, high, low) }""",
        {"x": SPECIAL.astype(np.float32), "low": np.float32(-1), "high": np.float32(2)},
        0,
    )


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("N,1,3", "N,4,1"),
        ("3", "N,4,3"),
        ("1", "N,2"),
        ("1,1", "N"),
        ("N,M", "M"),
        ("2,N", "1,1,N"),
    ],
)
def test_broadcasting(left: str, right: str) -> None:
    text = f"(float[{left}] a, float[{right}] b) => (float[] y) {{ y = Sub(a, b) }}"
    compiled = Compiled(_without_shape(text))
    for n in (1, 5):
        sizes = {"N": n, "M": 3}
        a, b = (
            np.random.default_rng(0).normal(size=_sizes(s, sizes)).astype(np.float32)
            for s in (left, right)
        )
        np.testing.assert_array_equal(compiled({"a": a, "b": b})["y"], a - b)


def _without_shape(text: str) -> Any:
    return parse(text.replace("float[] y", "float[?] y"))


def _sizes(shape: str, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[s] if s in sizes else int(s) for s in shape.split(",") if s)


def test_sizes_that_do_not_broadcast_are_an_error() -> None:
    """Two sizes that only the inputs know: equal or 1, or an error that names them."""
    graph = parse(
        "(float[N] a, float[M] b) => (float[K] y) { c = Concat<axis=0>(a, b) y = Add(c, b) }"
    )
    compiled = Compiled(graph)
    one = {"a": np.zeros(0, np.float32), "b": np.ones(3, np.float32)}
    np.testing.assert_array_equal(compiled(one)["y"], [2, 2, 2])
    with pytest.raises(InputError, match="do not broadcast"):
        compiled({"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)})


def test_bfloat16_rounds_to_nearest_even() -> None:
    x = np.array([1, 1.0078125, -3.5, np.nan, np.inf, 1e-3, 300], ml_dtypes.bfloat16)
    agree(
        """(bfloat16[N] x) => (bfloat16[N] a, bfloat16[N] m, bfloat16[N] e) {
            a = Add(x, x)  m = Mul(x, x)  e = Exp(x) }""",
        {"x": x},
        8e-3,
    )


def test_strings_are_refused() -> None:
    graph = parse("(string[N] x, string[N] z) => (bool[N] y) { y = Equal(x, z) }")
    with pytest.raises(UnsupportedOpError, match=r"Input .node 'x'.: tensors of type string"):
        Compiled(graph)
