"""Computes at build time what depends on constants alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir import schema
from graphopt.ir.content import as_array
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.onnx_io import to_proto
from graphopt.ir.types import TensorType, dtype_to_numpy
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import erase_dead

MAX_READ = 1 << 30  # a larger table may not fit in memory, and its fold is of no use to anyone

_VIEWS = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"])
_FOLDABLE = frozenset(
    ["bool", "string", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Evaluates nodes whose inputs are all constants.

    ONNX Runtime evaluates each node alone, so that the result has the bits that the model would have
    computed. What fails there (an index out of range) stays in the graph and fails at run time.
    Random ops stay. Reshaping a constant makes a view and reads nothing. Fidelity: exact.

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
            if not _is_candidate(node):
                continue
            result = self._evaluate(node)
            if isinstance(result, str):
                ctx.stats.refuse("fold", node, result)
                continue
            _replace(node, result)
            ctx.stats.hits["fold"] += 1
            changed = True
        return changed

    def _evaluate(self, node: Node) -> list[np.ndarray] | str:
        """The outputs of `node`, or why they are not computed."""
        arrays = [value.const for value in node.inputs if value is not None]
        data = node.const(0)
        if node.op in _VIEWS and data is not None and node.output.tensor.is_static:
            return [data.reshape(node.output.tensor.dims)]
        sizes = [_bytes(value) for value in node.outputs]
        freed = sum(v.const.nbytes for v in _freed(node) if v.const is not None)
        known = sum(size for size in sizes if size is not None)
        if known - freed > self.max_growth:
            return f"the result would add {known - freed} bytes, more than {self.max_growth}"
        if sum(array.nbytes for array in arrays if array is not None) > MAX_READ:
            return f"it would read more than {MAX_READ} bytes"
        results = _run(node)
        if isinstance(results, str):
            return results
        grown = sum(array.nbytes for array in results) - freed
        if grown > self.max_growth:
            return f"the result would add {grown} bytes, more than {self.max_growth}"
        return results


def _is_candidate(node: Node) -> bool:
    if node.subgraphs or not schema.is_deterministic(node.op_type, node.domain):
        return False
    return all(value is None or value.const is not None for value in node.inputs)


def _bytes(value: Value) -> int | None:
    """The size of a value in bytes if it is known before it is computed."""
    if not isinstance(value.type, TensorType) or not value.type.is_static:
        return None
    count = int(np.prod(value.type.dims, dtype=object))
    return count * dtype_to_numpy(value.type.dtype).itemsize


def _freed(node: Node) -> list[Value]:
    """The constants that only `node` reads."""
    read = dict.fromkeys(value for value in node.inputs if value is not None)
    return [value for value in read if all(use.user is node for use in value.uses)]


def _run(node: Node) -> list[np.ndarray] | str:
    """Evaluate one node in ONNX Runtime, or why that is impossible."""
    values = [*node.inputs, *node.outputs]
    for value in values:
        if value is not None and not (
            isinstance(value.type, TensorType) and value.type.dtype in _FOLDABLE
        ):
            return f"{value.type} cannot be evaluated at build time"
    content = node.output.content
    if content is not None and len(node.outputs) == 1:
        array = as_array(content, node.output.dtype)
        if array is not None:
            return [array]
    import onnxruntime

    assert node.graph is not None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    alone, feeds = _alone(node)
    model = to_proto(alone).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        return list(session.run(None, feeds))
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        return f"ONNX Runtime cannot evaluate it: {str(error).strip().splitlines()[0]}"


def _alone(node: Node) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of this node only, its constants as inputs so that none is copied."""
    assert node.graph is not None
    graph = Graph("fold", dict(node.graph.opsets))
    inputs: dict[Value, Value] = {}
    for value in node.inputs:
        if value is not None and value not in inputs:
            inputs[value] = graph.add_input(f"input{len(inputs)}", value.type)
    operands = [None if value is None else inputs[value] for value in node.inputs]
    copied = graph.insert(
        node.op_type, operands, node.attrs, domain=node.domain, outputs=len(node.outputs)
    )
    graph.set_outputs(copied.outputs, [f"output{k}" for k in range(len(copied.outputs))])
    feeds = {mine.name: np.asarray(value.const) for value, mine in inputs.items()}
    return graph, {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in feeds.items()}


def _replace(node: Node, results: list[np.ndarray]) -> None:
    assert node.graph is not None
    for value, array in zip(node.outputs, results):
        if value.uses:
            node.graph.replace_uses(value, node.graph.constant(array))
    erase_dead(node.graph, [node])
