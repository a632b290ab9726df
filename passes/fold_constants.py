"""Computes at build time what depends on constants alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType, dtype_to_numpy
from graphopt.passes._evaluate import evaluate, is_pure
from graphopt.passes._inline import replace
from graphopt.passes._shapes import static_shape
from graphopt.pipeline.base import Fidelity, Pass, PassContext

MAX_READ = 1 << 30  # a larger table may not fit in memory, and its fold is of no use to anyone

MIN_PACKED = 256  # fewer bytes are not worth an op at run time
_LAYERS = ("Gemm", "MatMul", "Conv")
_VIEWS = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"])


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Evaluates nodes whose inputs are all constants.

    Needs ops that are not random, and results that do not grow the model beyond `max_growth`. ONNX
    Runtime evaluates each node alone, so that the result has the bits that the model would have
    computed. What fails there (an index out of range) stays in the graph and fails at run time.
    Reshaping a constant makes a view and reads nothing. Fidelity: exact.

    Attributes:
        max_growth: how many bytes a fold may add, counted after constants that it frees.

    Before:
        (float[N,4] x) => (float[N,8] y) <float[8,4] w> {
            wt = Transpose<perm=[1,0]>(w)
            y = MatMul(x, wt)
        }

    After:
        (float[N,4] x) => (float[N,8] y) <float[4,8] wt> {
            y = MatMul(x, wt)
        }
    """

    max_growth: int = 1048576

    name = "fold-constants"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        for node in graph.walk():
            if not is_pure(node) or any(v is not None and v.const is None for v in node.inputs):
                continue
            results = self._fold(node)
            if isinstance(results, str):
                ctx.stats.refuse("fold", node, results)
                continue
            assert node.graph is not None
            replace(node, [node.graph.constant(array) for array in results])
            ctx.stats.hits["fold"] += 1
            changed = True
        return changed

    def _fold(self, node: Node) -> list[np.ndarray] | str:
        """The outputs of `node`, or why they are not computed."""
        arrays, data = [node.const(k) for k in range(len(node.inputs))], node.const(0)
        if node.op in _VIEWS and data is not None and node.output.tensor.is_static:
            return [data.reshape(static_shape(node.output.tensor))]
        freed = _freed(node)
        if _unpacks(node):
            return "it would store in full what is stored in few bits"
        known = sum(size for value in node.outputs if (size := _bytes(value)) is not None)
        if known - freed > self.max_growth:
            return f"the result would add {known - freed} bytes, more than {self.max_growth}"
        if sum(array.nbytes for array in arrays if array is not None) > MAX_READ:
            return f"it would read more than {MAX_READ} bytes"
        results = evaluate(node, arrays)
        if isinstance(results, str):
            return results
        grown = sum(array.nbytes for array in results) - freed
        if grown > self.max_growth:
            return f"the result would add {grown} bytes, more than {self.max_growth}"
        return results


def _unpacks(node: Node) -> bool:
    """True if `node` restores weights that are kept small on purpose.

    Weights of a layer and its bias are so in any size: ONNX Runtime rounds those of quantized
    models again if it finds them in full, to other codes. Other vectors are not worth it.
    """
    data = node.const(0)
    if data is None:
        return False
    if node.op == "DequantizeLinear" and _is_of_layer(node.output):
        return True
    if data.ndim < 2:
        return False
    halves = data.dtype == np.float16 and node.output.dtype == "float32"
    stored = node.op in ("DequantizeLinear", "graphopt::StoredWeights")
    return data.nbytes >= MIN_PACKED and (stored or (node.op == "Cast" and halves))


def _is_of_layer(value: Value) -> bool:
    """True if `value` is weights or the bias of some layer."""
    return any(user.op in _LAYERS and value in user.inputs[1:] for user in value.users)


def _bytes(value: Value) -> int | None:
    """The size of a value in bytes if it is known before it is computed."""
    if not isinstance(value.type, TensorType) or not value.type.is_static:
        return None
    return math.prod(static_shape(value.type)) * dtype_to_numpy(value.type.dtype).itemsize


def _freed(node: Node) -> int:
    """The bytes of constants that only `node` reads."""
    read = dict.fromkeys(value for value in node.inputs if value is not None)
    alone = [value for value in read if all(use.user is node for use in value.uses)]
    return sum(value.const.nbytes for value in alone if value.const is not None)
