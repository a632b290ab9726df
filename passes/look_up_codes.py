"""Tables of codes, of which ONNX Runtime is to restore the rows that are looked up alone."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

ids = var("ids")

_BLOCKS = 21  # the opset from which on a DequantizeLinear has them


@rule(op.Gather(op.DequantizeLinear(...).named("table").shared(), ids))
def restored_after_lookup(rw: Rewriter, table: Value, ids: Value, node: Node) -> Value | NoMatch:
    """Gather(DequantizeLinear(codes, s, z), ids) -> DequantizeLinear(Gather(codes, ids), …)"""
    restore = table.producer
    assert restore is not None
    codes, *parts = (restore.const(k) for k in range(len(restore.inputs)))
    if codes is None or any(part is None for part in parts) or codes.ndim != 2 or not codes.size:
        return NoMatch("it is no constant table of codes")
    if node.attr("axis") % 2:
        return NoMatch("it looks up columns")
    if codes.dtype.itemsize > 1 or not _whole(codes.dtype.name):
        return NoMatch("its codes are no whole numbers of 8 bits or less")
    shared = parts[0].size == 1  # type: ignore[union-attr]
    block = _block(restore, codes, parts[0])  # type: ignore[arg-type]
    if not shared and (block is None or restore.graph is None or restore.graph.opset() < _BLOCKS):
        return NoMatch("its rows have scales that no DequantizeLinear of rows can have")
    rows = rw.op.Gather(_in_bytes(rw, codes, restore.inputs[0]), ids)
    if shared:
        given = [_in_bytes(rw, part.reshape(()), None) for part in parts]  # type: ignore[union-attr]
        return rw.op.DequantizeLinear(rows, *given)
    given = [
        rw.op.Gather(_in_bytes(rw, part.reshape(len(codes), -1), None), ids)  # type: ignore[union-attr]
        for part in parts
    ]
    return rw.op.DequantizeLinear(rows, *given, axis=-1, block_size=block)


def _block(restore: Node, codes: np.ndarray, scale: np.ndarray) -> int | None:
    """How many neighbours of a row share a scale; None if columns have some of their own."""
    axis, block = restore.attr("axis") % 2, restore.attr("block_size", 0)
    if scale.ndim == 1 and axis == 0:
        return int(codes.shape[1])
    return int(block) if scale.ndim == 2 and axis == 1 and block else None


def _whole(dtype: str) -> bool:
    return dtype.lstrip("u") in ("int8", "int4", "int2")


def _in_bytes(rw: Rewriter, array: np.ndarray, value: Value | None) -> Value:
    """The constant `array`, `value` if there is one, in 8 bits where it has less."""
    name = array.dtype.name
    if _whole(name) and array.dtype.name not in ("int8", "uint8"):
        return rw.const(array.astype(np.uint8 if name[0] == "u" else np.int8))
    return rw.const(array) if value is None else value


class LookUpCodes(RewritePass):
    """Restores rows of a table of codes after they are looked up (for ONNX Runtime).

    ONNX Runtime restores a whole table in each call. Needs constants, and one scale for all, or
    scales of rows or their blocks, which take opset 21. Codes of less than 8 bits become bytes,
    as ONNX Runtime looks up nothing smaller. Fidelity: exact.

    Before:
        (int64[N] i) => (float[N,4] y) <uint8[9,4] t, float s, uint8 z> {
            d = DequantizeLinear(t, s, z)
            y = Gather(d, i)
        }

    After:
        (int64[N] i) => (float[N,4] y) <uint8[9,4] t, float s, uint8 z> {
            g = Gather(t, i)
            y = DequantizeLinear(g, s, z)
        }
    """

    name = "look-up-codes"
    fidelity = Fidelity.EXACT
    rules = (restored_after_lookup,)
