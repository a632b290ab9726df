"""`graphopt::StoredWeights`: weights that are stored in 8 or 4 bits, as floats.

With `bits` 8 the inputs are `codes`, int8 of any shape, and `scales`, one for each index of `axis`.
With 4 they are `codes` uint8[rows, width / 2], packed as in `graphopt::QuantizedLookup`, and
`scales` float[rows, groups] (16 or 32 bits), each for as many neighbouring codes. Output: float32
of the shape of the codes, or the first `columns` of [rows, width], turned to [columns, rows] with
`turned`; each code is multiplied by its scale.

It says what a DequantizeLinear does too. But of a layer between those ONNX Runtime makes one that
rounds its inputs to 8 bits, with ranges of its own, and that is slower than float32 from some ten
rows on. What this op expands to is computed when a model is loaded.
"""

from __future__ import annotations

import numpy as np
import onnx

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.ops.definition import local_function, tensor_inputs
from graphopt.ops.quantized_lookup import CODES, unpacked

DOMAIN = "graphopt"
OP_TYPE = "StoredWeights"


def restored(node: Node) -> np.ndarray | None:
    """The weights that `node` stores; None if they are not constants."""
    codes, scales = node.const(0), node.const(1)
    if codes is None or scales is None:
        return None
    if node.attr("bits", 8) == 8:
        shape = [1] * codes.ndim
        shape[node.attr("axis")] = -1
        return codes.astype(np.float32) * scales.astype(np.float32).reshape(shape)
    grouped = unpacked(codes).astype(np.float32).reshape(*scales.shape, -1)
    matrix = (grouped * scales.astype(np.float32)[..., None]).reshape(len(codes), -1)
    matrix = matrix[:, : node.attr("columns")]
    return np.ascontiguousarray(matrix.T) if node.attr("turned", 0) else matrix


@type_rule(OP_TYPE, domain=DOMAIN)
def _stored_weights(node: Node) -> list[Type | None]:
    (codes, scales), bits = tensor_inputs(node, "codes", "scales"), node.attr("bits", 8)
    if (
        not codes.rank
        or codes.dtype != {8: "int8", 4: "uint8"}.get(bits)
        or (bits == 4 and codes.rank != 2)
    ):
        raise failure(node, f"{codes} are no codes of {bits} bits")
    dims: list[Dim] = list(codes.dims)
    if bits == 8:
        axis = node.attr("axis")
        fits = isinstance(axis, int) and 0 <= axis < len(dims) and scales.dims == (dims[axis],)
    else:
        width, columns = dims[1] * 2, node.attr("columns")
        groups = scales.dims[1] if scales.rank == 2 else 0
        fits = isinstance(groups, int) and isinstance(width, int) and groups > 0
        fits = fits and scales.dims[0] == dims[0] and width % groups == 0  # type: ignore
        fits = fits and isinstance(columns, int) and 0 < columns <= width  # type: ignore
        dims = [columns, dims[0]] if node.attr("turned", 0) else [dims[0], columns]
    if scales.dtype not in ("float16", "float32") or not fits:
        raise failure(node, f"{scales} are no scales of {codes}")
    return [tensor_type("float32", dims)]


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    if node.attr("bits", 8) == 4:
        return f"{OP_TYPE}__4_bits{'_turned' if node.attr('turned', 0) else ''}"
    return f"{OP_TYPE}__8_bits_{node.output.rank}_axes_{node.attr('axis')}"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    bits, axis = node.attr("bits", 8), node.attr("axis", 0)
    if bits == 8:
        shape = ["1"] * (node.output.rank or 1)
        shape[axis] = "-1"
        lines = f"""
            shape = Constant <value_ints = [{", ".join(shape)}]> ()
            codes_of_ids = Cast <to = 1> (codes)
            scale = Cast <to = 1> (scales)
            column = Reshape (scale, shape)
            weights = Mul (codes_of_ids, column)"""
    else:
        lines = f"""
            rows = Identity (codes)
            {CODES[4]}
            last = Constant <value_ints = [-1]> ()
            groups = Shape (scales)
            apart = Concat <axis = 0> (groups, last)
            grouped = Reshape (codes_of_ids, apart)
            scale = Cast <to = 1> (scales)
            column = Unsqueeze (scale, last)
            scaled = Mul (grouped, column)
            shape = Shape (codes_of_ids)
            padded = Reshape (scaled, shape)
            zero = Constant <value_ints = [0]> ()
            one = Constant <value_ints = [1]> ()
            end = Constant <value_int: int = @columns> ()
            ends = Reshape (end, last)
            {"plain" if node.attr("turned", 0) else "weights"} = Slice (padded, zero, ends, one)
            {"weights = Transpose (plain)" if node.attr("turned", 0) else ""}"""
    signature = "(codes, scales) => (weights)"
    defaults = {"bits": bits, "axis": axis, "turned": 0, "columns": 0}
    return local_function(node, function_name(node), signature, lines, defaults=defaults)
