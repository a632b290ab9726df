"""Layers of 8-bit weights whose data are rounded row by row, when the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ops import dynamic_matmul
from graphopt.rewrite import Rewriter

_RESTORES = ("DequantizeLinear", "graphopt::StoredWeights")
_LEAST = 64
"""Inputs and outputs of a layer: finding the range of a row and rounding it must not cost more than
its products save."""
_ELEMENTS = 1 << 20  # of calibration data that an error is measured on


def codes_of(layer: Node) -> np.ndarray | None:
    """The weights of a Gemm or MatMul in 8 bits, if it has them so."""
    weight = layer.input(1)
    restore = weight.producer if weight is not None else None
    if restore is None or restore.op not in _RESTORES or restore.attr("bits", 8) != 8:
        return None
    return restore.const(0)


def row_error(batches: Sequence[np.ndarray], levels: int) -> float:
    """Root mean square of what rounding row by row loses, relative to that of the floats."""
    rows = np.concatenate([batch.reshape(-1, batch.shape[-1]) for batch in batches])
    rows = rows[:: max(1, rows.size // _ELEMENTS)]
    lost = np.square(dynamic_matmul.rounded(rows, levels) - rows, dtype=np.float64).mean()
    return float(np.sqrt(lost / (np.square(rows, dtype=np.float64).mean() or 1.0)))


@dataclass(frozen=True, eq=False)
class DynamicLayer:
    """What takes the place of a layer: a `graphopt::DynamicMatMul` and the sum with its bias.

    Attributes:
        codes: int8[inputs, outputs], with `scales` float32[outputs].
        bias: as the layer has it, times its factor.
        levels: see `graphopt.ops.dynamic_matmul`.
    """

    layer: Node
    data: Value
    codes: np.ndarray
    scales: np.ndarray
    bias: np.ndarray | None
    levels: int

    @staticmethod
    def of(layer: Node, data: Value, levels: int) -> DynamicLayer | str:
        """For a Gemm or MatMul of `data` and weights in 8 bits; why not, where it cannot be."""
        weight, bias = layer.inputs[1], layer.const(2)
        restore = weight.producer if weight is not None else None
        assert weight is not None and restore is not None
        turned = bool(layer.attr("transB", 0))
        codes, scales = restore.const(0), restore.const(1)
        if codes is None or codes.dtype != np.int8 or codes.ndim != 2 or (data.rank or 0) < 2:
            return "it does not multiply rows and a matrix of signed bytes"
        if scales is None or scales.dtype != np.float32 or restore.input(2) is not None:
            return "its weights have a zero point, or scales that are not float32"
        if scales.size > 1 and (scales.ndim, restore.attr("axis", 1) % 2) != (1, 1 - turned):
            return "its weights have no scale per output"
        if layer.input(2) is not None and bias is None:
            return "its bias is computed"
        matrix = codes.T if turned else codes
        if min(matrix.shape) < _LEAST:
            return "the layer is narrow"
        if matrix.min() < -127:
            return "its weights are not within -127 and 127"
        row = np.broadcast_to(scales.reshape(-1), matrix.shape[1:])
        row = row * np.float32(layer.attr("alpha", 1.0))
        if bias is not None:
            bias = (bias * np.float32(layer.attr("beta"))).astype(np.float32)
        return DynamicLayer(layer, data, np.ascontiguousarray(matrix), row, bias, levels)

    def put(self, graph: Graph, values: dict[Value, Value]) -> None:
        """Make the change in a copy of the graph."""
        before = values[self.layer.output].producer
        assert before is not None
        weight, rw = before.inputs[1], Rewriter(before, [before])
        inputs = [values[self.data], rw.const(self.codes), rw.const(self.scales)]
        attrs = {"levels": self.levels}
        domain = dynamic_matmul.DOMAIN
        made = rw.insert(dynamic_matmul.OP_TYPE, inputs, attrs, domain=domain).output
        if self.bias is not None:
            made = rw.op.Add(made, rw.const(self.bias))
        rw.graph.replace_uses(before.output, made)
        rw.graph.erase(before)
        values[self.layer.output] = made
        restore = weight.producer if weight is not None else None
        if restore is not None and not restore.output.uses and restore.graph is not None:
            restore.graph.erase(restore)
