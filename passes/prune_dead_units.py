"""Units, columns and tables that cannot change an answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.analysis.intervals import Intervals
from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._concats import concat
from graphopt.passes._hidden_layer import HiddenLayer
from graphopt.passes._inline import replace
from graphopt.passes._linear import is_per_column, matrix_of
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite import Rewriter

_NOT_FINITE = "a weight is not finite, so that its product with 0 is NaN"


@dataclass(frozen=True)
class PruneDeadUnits(Pass):
    """Removes units that always give one number, and operands of layers that no output depends on.

    Needs constant weights. A unit is dead if its activation gives the same for all that its inputs
    can be: as bounds from tables, weights and activations say, or because all its weights are zero.
    A concatenated operand of a layer goes if each of its columns is one number or meets zero
    weights only; where it was looked up, so does its table. Answers differ for infinite inputs,
    which times zero are NaN. Fidelity: reassociates.

    Before:
        (int64[N] ids, float[N,2] x) => (float[N,2] y)
        <float[9,2] t, float[4,2] w = {1, 2, 3, 4, 0, 0, 0, 0}, float[2] b> {
            e = Gather<axis=0>(t, ids)
            v = Concat<axis=1>(e, x)
            y = Gemm(v, w, b)
        }

    After:
        (int64[N] ids, float[N,2] x) => (float[N,2] y) <float[9,2] t, float[2,2] w, float[2] b> {
            e = Gather<axis=0>(t, ids)
            y = Gemm(e, w, b)
        }
    """

    name = "prune-dead-units"
    fidelity = Fidelity.REASSOCIATES

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        intervals = Intervals()
        for node in graph.nodes:
            for rule, name in ((_without_dead_units, "units"), (_without_dead_columns, "columns")):
                if rule(node, intervals, ctx):
                    ctx.stats.hits[name] += 1
                    intervals, changed = Intervals(), True
                    break
        return changed


def _without_dead_units(second: Node, intervals: Intervals, ctx: PassContext) -> bool:
    layer = HiddenLayer.before(second)
    if not isinstance(layer, HiddenLayer):
        return False
    found = intervals.of(layer.hidden)
    dead = np.broadcast_to(found.is_constant, (layer.units,)).copy()
    dead[0] &= not dead.all()  # a layer keeps one unit at least
    if not dead.any():
        return False
    offset = np.where(dead, np.where(dead, found.low, 0.0), 0.0)
    if not np.isfinite(layer.outgoing).all():
        ctx.stats.refuse("units", second, _NOT_FINITE)
        return False
    kept = np.flatnonzero(~dead)
    layer.replace(kept, np.eye(layer.units)[kept], offset)
    return True


def _without_dead_columns(layer: Node, intervals: Intervals, ctx: PassContext) -> bool:
    parts = _joined_for(layer)
    if parts is None:
        return False
    matrix, bounds = matrix_of(layer), [intervals.of(part) for part in parts]
    unused = ~matrix.any(axis=1)
    widths = [len(found.low) for found in bounds]
    met = np.split(unused, np.cumsum(widths)[:-1])
    dead = np.array([(u | found.is_constant).all() for u, found in zip(met, bounds)])
    if not dead.any() or dead.all():
        return False
    gone = np.repeat(dead, widths)
    if not np.isfinite(matrix[gone]).all():
        ctx.stats.refuse("columns", layer, _NOT_FINITE)
        return False
    constant = np.where(unused, 0.0, np.concatenate([found.low for found in bounds]))
    shift = np.where(gone, constant, 0.0) @ matrix.astype(np.float64)
    rest = [part for part, is_dead in zip(parts, dead) if not is_dead]
    _rebuild(layer, rest, np.ascontiguousarray(matrix[~gone]), shift)
    return True


def _joined_for(layer: Node) -> list[Value] | None:
    """What is concatenated into columns for `layer`, a constant matrix, and for nobody else."""
    weight, data = layer.input(1), layer.input(0)
    if layer.op not in ("Gemm", "MatMul") or weight is None or weight.const is None:
        return None
    if weight.rank != 2 or layer.attr("transA", 0) or not is_per_column(layer.input(2)):
        return None
    concat = data.producer if data is not None else None
    if concat is None or concat.op != "Concat" or len(concat.output.uses) > 1:
        return None
    if concat.attr("axis") not in (-1, (concat.output.rank or 0) - 1):
        return None
    parts = concat.operands
    known = all(part.rank and isinstance(part.tensor.dims[-1], int) for part in parts)
    return parts if known else None


def _rebuild(layer: Node, parts: list[Value], matrix: np.ndarray, shift: np.ndarray) -> None:
    """`layer` on fewer columns, whose others added `shift` to its outputs."""
    rw = Rewriter(layer, [layer])
    inputs: list[Value | None] = [concat(rw, parts, -1), rw.const(matrix)]
    attrs = {name: attr for name, attr in layer.attrs.items() if name not in ("transB", "beta")}
    if layer.op == "Gemm":
        bias = layer.const(2)
        offset = layer.attr("alpha") * shift
        if bias is not None:
            offset = offset + layer.attr("beta") * bias.astype(np.float64).reshape(-1)
        inputs.append(rw.const(offset.astype(matrix.dtype)))
    made = rw.insert(layer.op, inputs, attrs).output
    if layer.op == "MatMul" and shift.any():
        made = rw.op.Add(made, rw.const(shift.astype(matrix.dtype)))
    replace(layer, [made])
