"""`graphopt::DynamicMatMul`: a product of rows, each rounded to 8 bits in its own range, and codes.

Inputs: `x` float32[..., k], `codes` int8[k, n] in [-127, 127], `scales` float32[n]. Attribute:
`levels` (255). Output: float32[..., n]. The range of a row of x, from the least to the largest of
its elements and 0, is parted into `levels` steps; its elements become whole numbers of steps, as
DynamicQuantizeLinear has it for a tensor and 255 steps. Those are multiplied in integers, and the
sums scaled by the step of the row and by `scales`; a row's result depends on nothing but the row.
It is NaN for a row that holds NaN or an infinity, and 0 for a row of zeros.

MatMulInteger of unsigned and signed bytes is what ONNX Runtime does fastest. But on x86 CPUs
without VNNI it adds up two products in 16 bits, which saturates. With 127 levels it does not.
"""

from __future__ import annotations

import numpy as np
import onnx

from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.ops.definition import local_function, tensor_inputs

DOMAIN = "graphopt"
OP_TYPE = "DynamicMatMul"
LEVELS = 255
EXACT_LEVELS = 127
"""With which products are exact on all CPUs: 2 * 128 * 127 fits 16 bits."""
LEAST_STEP = 1e-30
"""Between two codes: it has a reciprocal, and rows of zeros have one too."""

# Halves are exact, so that no spread of finite numbers is infinite. Products with zeros are NaN in
# the rows that hold what is not finite: ONNX Runtime's ReduceMax passes over NaN.
_BODY = f"""
    one = Constant <value_ints = [1]> ()
    zero = Constant <value_float = 0.0> ()
    half = Constant <value_float = 0.5> ()
    two = Constant <value_float = 2.0> ()
    parts = Constant <value_int: int = @levels> ()
    count = Cast <to = 1> (parts)
    share = Div (two, count)
    least = Constant <value_float = {LEAST_STEP!r}> ()
    largest = ReduceMax <keepdims = 0> (rows, one)
    smallest = ReduceMin <keepdims = 0> (rows, one)
    high = Max (largest, zero)
    low = Min (smallest, zero)
    upper = Mul (high, half)
    lower = Mul (low, half)
    spread = Sub (upper, lower)
    apart = Mul (spread, share)
    step = Max (apart, least)
    beneath = Neg (low)
    offset = Div (beneath, step)
    whole = Round (offset)
    zero_points = Cast <to = 2> (whole)
    rounded = QuantizeLinear <axis = 0> (rows, step, zero_points)
    raw = MatMulInteger (rounded, codes)
    weights = Cast <to = 6> (codes)
    first = Constant <value_ints = [0]> ()
    totals = ReduceSum (weights, first)
    zeros = Cast <to = 6> (zero_points)
    column = Unsqueeze (zeros, one)
    shift = Mul (column, totals)
    exact = Sub (raw, shift)
    sums = Cast <to = 1> (exact)
    depth = Shape <start = 0, end = 1> (codes)
    nothing_of = Concat <axis = 0> (depth, one)
    nothing = ConstantOfShape <value = float[1] {{0.0}}> (nothing_of)
    mark = MatMul (rows, nothing)
    steps = Unsqueeze (step, one)
    marked = Add (steps, mark)
    scaled = Mul (sums, scales)
"""
_MANY_AXES = f"""
    minus = Constant <value_ints = [-1]> ()
    inputs = Shape <start = 0, end = 1> (codes)
    flat = Concat <axis = 0> (minus, inputs)
    rows = Reshape (x, flat)
    {_BODY}
    matrix = Mul (scaled, marked)
    leading = Shape <start = 0, end = -1> (x)
    outputs = Shape <start = 1, end = 2> (codes)
    shape = Concat <axis = 0> (leading, outputs)
    y = Reshape <allowzero = 1> (matrix, shape)
"""
_TWO_AXES = f"""
    rows = Identity (x)
    {_BODY}
    y = Mul (scaled, marked)
"""


def rounded(rows: np.ndarray, levels: int = LEVELS) -> np.ndarray:
    """What the codes of float32[rows, k] stand for, in NumPy; NaN for a row that is not finite."""
    half = np.float32(0.5)
    with np.errstate(invalid="ignore", over="ignore"):
        high, low = rows.max(axis=1, initial=0), rows.min(axis=1, initial=0)
        spread = (high * half - low * half) * np.float32(2 / levels)
        step = np.maximum(spread, np.float32(LEAST_STEP))[:, None]
        zero = np.rint(-low[:, None] / step)
        codes = np.clip(np.rint(rows / step) + zero, 0, 255)
        found = (codes - zero) * step
    found[~np.isfinite(rows).all(axis=1)] = np.nan
    return np.asarray(found, np.float32)


@type_rule(OP_TYPE, domain=DOMAIN)
def _dynamic_matmul(node: Node) -> list[Type | None]:
    if node.attr("levels", LEVELS) not in (LEVELS, EXACT_LEVELS):
        raise failure(node, f"levels must be {EXACT_LEVELS} or {LEVELS}")
    x, codes, scales = tensor_inputs(node, "x", "codes", "scales")
    if (codes.rank, codes.dtype) != (2, "int8"):
        raise failure(node, f"codes must be int8[k, n], not {codes}")
    if (scales.dtype, scales.shape) != ("float32", codes.dims[1:]):
        raise failure(node, f"scales must be float[{codes.dims[1]}], not {scales}")
    if x.dtype != "float32" or (x.rank or 0) < 2 or x.dims[-1] != codes.dims[0]:
        raise failure(node, f"x must be float[..., {codes.dims[0]}] of two axes or more, not {x}")
    return [tensor_type("float32", [*x.dims[:-1], codes.dims[1]])]


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return OP_TYPE if node.output.rank == 2 else f"{OP_TYPE}__many_axes"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    body = _TWO_AXES if node.output.rank == 2 else _MANY_AXES
    signature, defaults = "(x, codes, scales) => (y)", {"levels": LEVELS}
    return local_function(node, function_name(node), signature, body, defaults=defaults)
