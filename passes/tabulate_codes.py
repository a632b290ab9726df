"""What follows from one code of 8 bits is looked up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType, dtype_to_onnx
from graphopt.passes._evaluate import evaluate
from graphopt.passes._inline import replace
from graphopt.passes._rowwise import is_elementwise
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite import Rewriter

_CODES = ("int8", "uint8")
_COSTLY = frozenset(
    ["Div", "Elu", "Erf", "Exp", "Gelu", "HardSwish", "Log", "Mish", "Pow", "Reciprocal"]
    + ["Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh"]
)
_ALL = np.arange(256).astype(np.uint8)  # in the order of their bits


@dataclass(frozen=True)
class TabulateCodes(Pass):
    """Replaces elementwise ops from 8-bit codes to 8-bit codes by a table of 256 entries.

    Needs ops that read one such tensor, and constants of one element; among them one that takes
    longer than a sum, as in quantized activations. ONNX Runtime computes what becomes of each of
    the 256 codes, one op after the other, so that the results have the bits that the model would
    have computed. Fidelity: exact.

    Before:
        (uint8[N,4] q) => (uint8[N,4] y) <float s = {0.04}, uint8 z = {99},
        float t = {0.004}, uint8 u = {0}> {
            x = DequantizeLinear(q, s, z)
            v = Sigmoid(x)
            y = QuantizeLinear(v, t, u)
        }

    After:
        (uint8[N,4] q) => (uint8[N,4] y) <uint8[256] table> {
            i = Cast<to=6>(q)
            y = Gather(table, i)
        }
    """

    name = "tabulate-codes"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        sources, found = _sources(graph), []
        for node in (node for node in sources if _ends(node, sources)):
            region = _region(node, sources[node], sources)
            table: np.ndarray | str = "it computes nothing that takes long"
            if any(inner.op in _COSTLY for inner in region):
                table = _table(region, sources[node])
            if isinstance(table, str):
                ctx.stats.refuse("tabulate", node, table)
            else:
                found.append((node, table, Rewriter(node, region)))
        for node, table, rw in found:
            ids = rw.op.Cast(sources[node], to=dtype_to_onnx("int32"))
            replace(node, [rw.op.Gather(rw.const(table), ids, axis=0)])
            ctx.stats.hits["tabulate"] += 1
        return bool(found)


def _sources(graph: Graph) -> dict[Node, Value]:
    """For each node that computes something of one tensor of codes only, these codes."""
    found: dict[Node, Value] = {}
    for node in graph.nodes:
        if not is_elementwise(node) or len(node.outputs) != 1:
            continue
        read = [v for v in node.inputs if v is not None and not _is_number(v)]
        of = {_source(v, found) for v in read}
        source = next(iter(of)) if len(of) == 1 else None
        if source is not None and node.output.shape == source.shape:
            found[node] = source
    return found


def _source(value: Value, found: dict[Node, Value]) -> Value | None:
    if value.producer is not None and value.producer in found:
        return found[value.producer]
    is_codes = isinstance(value.type, TensorType) and value.dtype in _CODES
    return value if is_codes and value.shape is not None and value.const is None else None


def _is_number(value: Value) -> bool:
    return value.const is not None and value.const.size == 1 and value.const.ndim == 0


def _ends(node: Node, sources: dict[Node, Value]) -> bool:
    """True for codes that something else follows from than further codes of the same ones."""
    if node.output.dtype not in _CODES or node.op != "QuantizeLinear":
        return False
    pending = [node.output]
    while pending:
        value = pending.pop()
        if value.is_graph_output:
            return True
        for user in value.users:
            if sources.get(user) is not sources[node]:
                return True
            if user.output.dtype not in _CODES:
                pending.append(user.output)
    return False


def _region(last: Node, source: Value, sources: dict[Node, Value]) -> list[Node]:
    """What is computed of `source` for the result of `last`, in order."""
    region: dict[Node, None] = {}
    pending = [last]
    while pending:
        node = pending.pop()
        if node in region:
            continue
        region[node] = None
        made_by = [v.producer for v in node.inputs if v is not None and v is not source]
        pending += [n for n in made_by if n is not None and n in sources]
    assert last.graph is not None
    return [node for node in last.graph.nodes if node in region]


def _table(region: list[Node], source: Value) -> np.ndarray | str:
    """The result for each code, in the order of their bits, or why that is not known."""
    known = {source: _ALL.view(source.dtype)}
    for node in region:
        operands = [None if v is None else known.get(v, v.const) for v in node.inputs]
        results = evaluate(node, operands)
        if isinstance(results, str):
            return results
        known[node.output] = results[0]
    return known[region[-1].output]
