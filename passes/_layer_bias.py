"""Biases of layers that take up what the layers' outputs lose in the mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.ir.graph import Node
from graphopt.passes._evaluate import evaluate
from graphopt.passes._linear import turned

_STORED = ("DequantizeLinear", "graphopt::StoredWeights")


def mean_row(batches: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over everything but the last axis, float64."""
    rows = [batch.reshape(-1, batch.shape[-1]) for batch in batches]
    total = sum(part.sum(axis=0, dtype=np.float64) for part in rows)
    return np.asarray(total) / max(1, sum(map(len, rows)))


def bias_for_shift(layer: Node, inputs: np.ndarray) -> np.ndarray | None:
    """The bias that makes up for a constant `inputs` that is added to the rows that a Gemm reads.

    None if nothing can: it has no bias of its own, or its weights are not constants.
    """
    bias, weight = layer.const(2), weight_of(layer)
    if layer.op != "Gemm" or bias is None or weight is None or not layer.attr("beta"):
        return None
    if bias.shape[:-1] not in ((), (1,)):
        return None
    moved = -layer.attr("alpha") / layer.attr("beta") * (inputs @ weight.astype(np.float64))
    return (bias + moved.reshape(bias.shape[:-1] + (-1,))).astype(np.float32)


def weight_of(layer: Node) -> np.ndarray | None:
    """The weight [inputs, outputs] of a Gemm or MatMul, restored if it is stored in 8 bits."""
    value = layer.inputs[1]
    assert value is not None
    weight = value.const
    if weight is None and value.producer is not None and value.producer.op in _STORED:
        stored = [v.const if v is not None else None for v in value.producer.inputs]
        found = evaluate(value.producer, stored)
        weight = None if isinstance(found, str) else found[0]
    if weight is None or weight.ndim != 2:
        return None
    return turned(layer, weight)
