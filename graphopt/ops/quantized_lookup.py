"""`graphopt::QuantizedLookup`: rows of a table that is stored in 8 or 4 bits, as floats.

Inputs: `codes`, `scales` float[rows] (16 or 32 bits), `ids` int[...]. With `bits` 8 the codes are
int8[rows, dim]. With 4 they are uint8[rows, dim / 2]: a byte holds an element of the first half of
the row in its low bits and one of the second half in its high bits, both plus 8. Output:
float32[..., dim], each code multiplied by the scale of its row. Negative ids count from the end.
"""

from __future__ import annotations

import numpy as np
import onnx

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.ops.definition import local_function, tensor_inputs

DOMAIN = "graphopt"
OP_TYPE = "QuantizedLookup"


def packed(codes: np.ndarray) -> np.ndarray:
    """int8[rows, dim] in [-8, 7], dim even, as uint8[rows, dim / 2]."""
    shifted = (codes + 8).astype(np.uint8)
    low, high = np.split(shifted, 2, axis=1)
    return low | (high << 4)


def unpacked(codes: np.ndarray) -> np.ndarray:
    """The inverse of `packed`."""
    return np.concatenate([codes & 15, codes >> 4], axis=1).astype(np.int8) - np.int8(8)


def check_codes(node: Node) -> Dim:
    """The width of a row of the table that inputs 0 and 1 of `node` describe; 2 are the ids.

    Raises:
        InvalidModelError: they do not fit each other or the attribute `bits`.
    """
    codes, scales, ids = tensor_inputs(node, "codes", "scales", "ids", more=True)
    bits = node.attr("bits", 8)
    if codes.rank != 2 or codes.dtype != {8: "int8", 4: "uint8"}.get(bits):
        raise failure(node, f"{codes} are no codes of {bits} bits")
    if scales.rank != 1 or scales.dtype not in ("float16", "float32"):
        raise failure(node, f"{scales} are no scales")
    if ids.dtype not in ("int32", "int64"):
        raise failure(node, f"{ids} are no ids")
    return codes.dims[1] * (2 if bits == 4 else 1)


@type_rule(OP_TYPE, domain=DOMAIN)
def _quantized_lookup(node: Node) -> list[Type | None]:
    dim, ids = check_codes(node), node.inputs[2]
    assert ids is not None
    shape = None if ids.shape is None else [*ids.tensor.dims, dim]
    return [tensor_type("float32", shape)]


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return f"{OP_TYPE}__{node.attr('bits', 8)}_bits"


CODES = {
    8: "codes_of_ids = Cast <to = 1> (rows)",
    4: """
        fifteen = Constant <value = uint8[1] {15}> ()
        four = Constant <value = uint8[1] {4}> ()
        eight = Constant <value = float[1] {8.0}> ()
        low = BitwiseAnd (rows, fifteen)
        high = BitShift <direction = "RIGHT"> (rows, four)
        both = Concat <axis = -1> (low, high)
        shifted = Cast <to = 1> (both)
        codes_of_ids = Sub (shifted, eight)""",
}


def dequantized(bits: int, ids: str) -> str:
    """Lines of a function body: `found` [..., dim], the rows of `ids` as floats."""
    return f"""
        last_axis = Constant <value_ints = [-1]> ()
        rows = Gather <axis = 0> (codes, {ids})
        {CODES[bits]}
        stored = Gather <axis = 0> (scales, {ids})
        scale = Cast <to = 1> (stored)
        column = Unsqueeze (scale, last_axis)
        found = Mul (codes_of_ids, column)"""


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    bits, signature = node.attr("bits", 8), "(codes, scales, ids) => (found)"
    body, defaults = dequantized(bits, "ids"), {"bits": bits}
    return local_function(node, function_name(node), signature, body, defaults=defaults)
