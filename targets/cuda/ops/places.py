"""NonZero and ScatterND: positions by one block, all else by many."""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx

from graphopt.ir import dims
from graphopt.ir.graph import Node, Value
from graphopt.targets.cuda.kernels import places
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.cuda.ops.lookup import demand_tuples
from graphopt.targets.kernels import bounds
from graphopt.targets.relax.loops import loops, row_major
from graphopt.targets.relax.lowering import Lowering, compute, converter_of, int64
from graphopt.targets.relax.operands import describe, same_sizes, tensor_input
from graphopt.targets.relax.ops.indexing import tuple_size
from graphopt.targets.relax.ops.selection import counted, nonzero


@lowers("NonZero")
def _nonzero(lower: CudaLowering, node: Node) -> relax.Expr:
    return nonzero(lower, node, _positions)


def _positions(lower: Lowering, value: Value, axis: int, result: Value) -> tuple[relax.Expr, Any]:
    flat = lower.reshape(lower.expr(value), [lower.dim(dims.product(value.tensor.dims))])
    (count,) = loops(lower, places.count_nonzero, [flat], [([1], "int64")])
    size = counted(lower, result, axis, count)
    return loops(lower, places.find_nonzero, [flat], [([size], "int64")])[0], size


@lowers("ScatterND")
def _scatter_nd(lower: CudaLowering, node: Node) -> Any:
    data, ids, updates = (tensor_input(node, k) for k in range(3))
    sizes, depth = data.tensor.dims, tuple_size(lower, ids)
    indexed, rest = sizes[:depth], sizes[depth:]
    wanted = (*ids.tensor.dims[:-1], *rest)
    if node.attr("reduction", "none") != "none" or not depth:
        general = converter_of(node.op_type, "", "")
        assert general is not None
        return general(lower, node)
    extents = [int64(lower.dim(size)) for size in indexed]
    demand_tuples(lower, node, extents)
    count, inner = lower.dim(dims.product(ids.tensor.dims[:-1])), lower.dim(dims.product(rest))
    rows = lower.dim(dims.product(indexed))

    def write(indices: Any, writer: Any) -> None:
        def place_of(k: Any) -> tuple[Any, Any]:
            index = [indices[k, d].astype("int64") for d in range(depth)]
            inside = [tirx.max(tirx.min(i, n - 1), -n) for i, n in zip(index, extents)]
            found = [tirx.Select(i < 0, i + n, i) for i, n in zip(inside, extents)]
            valid = [bounds.is_valid(i, n) for i, n in zip(index, extents)]
            writes = tirx.all(*valid) if lower.oob == "zero" else tirx.const(True, "bool")
            return row_major(found, extents), writes

        places.last_writers(int64(count), place_of, writer)

    tuples = lower.reshape(lower.expr(ids), [count, depth])
    (writer,) = loops(lower, write, [tuples], [([rows], "int32")])

    def take(x: te.Tensor, changes: te.Tensor, by: te.Tensor) -> te.Tensor:
        def element(i: Any, j: Any) -> Any:
            update = changes(by(i).astype("int64") * int64(inner) + j)
            return tirx.if_then_else(by(i) >= 0, update, x(i, j))

        return compute([rows, inner], element, "scatter_nd")

    old = lower.reshape(lower.expr(data), [rows, inner])
    changes = lower.reshape(lower.expr(updates), [lower.dim(dims.product(updates.tensor.dims))])
    same = same_sizes(lower, updates.tensor.dims, wanted)
    checks = [(same, f"{describe(node)}: its updates do not fit its indices")]
    result = lower.te(
        take, old, changes, writer, checks=checks if updates.tensor.dims != wanted else ()
    )
    return lower.reshape(result, lower.shape(node.output))
