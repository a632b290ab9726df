"""Ops that write to positions found in data.

The updates of one place happen in order, those of others at once. A TensorScatter writes at most
once to a place, so that each element finds what is written to it.
"""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx

from graphopt.ir import dims
from graphopt.ir.graph import Node
from graphopt.targets.cuda.kernels import places, scattering, sorting
from graphopt.targets.cuda.kernels.scattering import Lines
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.cuda.ops.lookup import demand_tuples
from graphopt.targets.kernels import bounds
from graphopt.targets.relax.loops import loops, row_major
from graphopt.targets.relax.lowering import compute, int64
from graphopt.targets.relax.operands import describe, same_sizes, tensor_input
from graphopt.targets.relax.ops.indexing import fitting, out_of_range, tuple_size
from graphopt.targets.relax.ops.scatter import CacheWrite, reduction_of

_SHORT = 128  # elements of a line that one thread writes


@lowers("ScatterElements", "Scatter")
def _scatter_elements(lower: CudaLowering, node: Node) -> relax.Expr:
    data, ids, updates = (tensor_input(node, k) for k in range(3))
    sizes = data.tensor.dims
    axis = node.attr("axis") % len(sizes)
    fits = tirx.all(fitting(lower, ids, data, axis), fitting(lower, ids, updates, -1))
    lower.demand(lambda k: fits, [], 1, f"{describe(node)}: its indices are larger than its data")
    lower.demand_ids(node, ids, sizes[axis])
    change, oob = reduction_of(lower, node), lower.oob
    arguments = [lower.expr(value) for value in (data, ids, updates)]
    result = [(lower.shape(data), data.dtype)]
    longest = [value.tensor.dims[axis] for value in (data, ids)]
    if all(isinstance(size, int) and size <= _SHORT for size in longest):

        def body(source: Any, indices: Any, changes: Any, out: Any) -> None:
            scattering.scatter(source, indices, changes, out, axis, oob, change)

        return loops(lower, body, arguments, result)[0]
    shape, size = lower.shape(data), int64(lower.dim(sizes[axis]))
    on, given = Lines(shape, axis), lower.dim(ids.tensor.dims[axis])

    def place(indices: Any) -> sorting.Key:
        return lambda line, k: scattering.place_of(indices[tuple(on.index(line, k))], size, oob)

    def sort(indices: Any, changes: Any, order: Any, spare: Any) -> None:
        def length(line: Any) -> Any:
            return on.shared(line, indices, changes)

        sorting.sort(place(indices), length, sorting.rounds_below(size + 1), order, spare)

    sorted_shape = ([on.count, given], "int64")
    order, _ = loops(lower, sort, arguments[1:], [sorted_shape, sorted_shape])

    def apply(source: Any, indices: Any, changes: Any, by: Any, out: Any) -> None:
        def changed(index: list[Any], update: Any) -> Any:
            return change(out, index, changes[tuple(on.index(on.of(index), update))])

        scattering.scatter_sorted(
            source,
            by,
            out,
            lambda index: (on.of(index), index[axis]),
            lambda line: on.shared(line, indices, changes),
            place(indices),
            changed,
        )

    return loops(lower, apply, [*arguments, order], result)[0]


class _Tuples:
    """What a ScatterND writes where: updates [count, inner] to rows of the data [rows, inner]."""

    def __init__(self, lower: CudaLowering, node: Node) -> None:
        data, ids, updates = (tensor_input(node, k) for k in range(3))
        depth = tuple_size(lower, ids)
        indexed, rest = data.tensor.dims[:depth], data.tensor.dims[depth:]
        wanted = (*ids.tensor.dims[:-1], *rest)
        self.oob = lower.oob
        self.extents = [int64(lower.dim(size)) for size in indexed]
        demand_tuples(lower, node, self.extents)
        self.count, self.inner, self.rows = (
            lower.dim(dims.product(part)) for part in (ids.tensor.dims[:-1], rest, indexed)
        )
        self.tuples = lower.reshape(lower.expr(ids), [self.count, depth])
        self.data = lower.reshape(lower.expr(data), [self.rows, self.inner])
        elements = lower.dim(dims.product(updates.tensor.dims))
        self.updates = lower.reshape(lower.expr(updates), [elements])
        same = same_sizes(lower, updates.tensor.dims, wanted)
        self.fits = updates.tensor.dims == wanted
        self.checks = [(same, f"{describe(node)}: its updates do not fit its indices")]
        self.same = same

    def row(self, tuples: Any, k: Any) -> tuple[Any, Any]:
        """The row that the k-th tuple names, in range, and whether it is written."""
        index = [tuples[k, d].astype("int64") for d in range(len(self.extents))]
        found = [bounds.row_of(i, n, "clamp") for i, n in zip(index, self.extents)]
        valid = [bounds.is_valid(i, n) for i, n in zip(index, self.extents)]
        writes = tirx.all(tirx.const(True, "bool"), *(valid if self.oob == "zero" else []))
        return row_major(found, self.extents), writes


@lowers("ScatterND")
def _scatter_nd(lower: CudaLowering, node: Node) -> relax.Expr:
    if node.attr("reduction", "none") == "none":
        result = _replaced(lower, _Tuples(lower, node))
    else:
        result = _reduced(lower, node, _Tuples(lower, node))
    return lower.reshape(result, lower.shape(node.output))


def _replaced(lower: CudaLowering, given: _Tuples) -> relax.Expr:
    """Of the updates of a place the last one stays."""

    def write(tuples: Any, writer: Any) -> None:
        places.last_writers(int64(given.count), lambda k: given.row(tuples, k), writer)

    (writer,) = loops(lower, write, [given.tuples], [([given.rows], "int32")])

    def take(x: te.Tensor, changes: te.Tensor, by: te.Tensor) -> te.Tensor:
        def element(i: Any, j: Any) -> Any:
            update = changes(by(i).astype("int64") * int64(given.inner) + j)
            return tirx.if_then_else(by(i) >= 0, update, x(i, j))

        return compute([given.rows, given.inner], element, "scatter_nd")

    checks = () if given.fits else given.checks
    return lower.te(take, given.data, given.updates, writer, checks=checks)


def _reduced(lower: CudaLowering, node: Node, given: _Tuples) -> relax.Expr:
    """The updates of a place are added up, multiplied, or compared, in order."""
    change, rows, inner = reduction_of(lower, node), int64(given.rows), int64(given.inner)
    lower.demand(lambda k: given.same, [], 1, given.checks[0][1])
    # What does not fit is not read.
    count = tirx.Select(given.same, int64(given.count), int64(0))

    def place(tuples: Any) -> sorting.Key:
        def of(line: Any, k: Any) -> Any:
            row, writes = given.row(tuples, k)
            return tirx.Select(writes, row, rows)

        return of

    def sort(tuples: Any, order: Any, spare: Any) -> None:
        rounds = sorting.rounds_below(rows + 1)
        sorting.sort(place(tuples), lambda line: count, rounds, order, spare)

    shape = ([1, given.count], "int64")
    order, _ = loops(lower, sort, [given.tuples], [shape, shape])

    def apply(source: Any, tuples: Any, changes: Any, by: Any, out: Any) -> None:
        scattering.scatter_sorted(
            source,
            by,
            out,
            lambda index: (int64(0), index[0]),
            lambda line: count,
            place(tuples),
            lambda index, k: change(out, index, changes[k * inner + index[1]]),
        )

    arguments = [given.data, given.tuples, given.updates, order]
    data = tensor_input(node, 0)
    return loops(lower, apply, arguments, [([given.rows, given.inner], data.dtype)])[0]


@lowers("TensorScatter")
def _tensor_scatter(lower: CudaLowering, node: Node) -> relax.Expr:
    write, oob = CacheWrite(lower, node), lower.oob
    steps, length = write.steps, write.length
    if oob != "zero":
        given = write.arguments[2:]

        def holds(k: Any, *starts: te.Tensor) -> Any:
            start = starts[0](k).astype("int64") if starts else int64(0)
            return write.is_start(start) if oob == "error" else steps <= length

        message = out_of_range(node, tensor_input(node, 0).tensor.dims[node.attr("axis")])
        lower.demand(holds, given, write.shape[0] if given else 1, message)

    def place(source: te.Tensor, changes: te.Tensor, *starts: te.Tensor) -> te.Tensor:
        def element(b: Any, m: Any, at: Any, j: Any) -> Any:
            start = starts[0](b).astype("int64") if starts else int64(0)
            step = at - write.first(start)
            if write.circular:
                step = tirx.Select(step < 0, step + length, step)
            written = [step >= 0, step < steps]
            if oob == "zero":
                written.append(write.is_start(start))
            return tirx.if_then_else(
                tirx.all(*written), changes(b, m, step, j), source(b, m, at, j)
            )

        return compute(write.shape, element, "tensor_scatter")

    checks = [(write.fits, write.complaint)]
    result = lower.te(place, *write.arguments, checks=checks)
    return lower.reshape(result, lower.shape(node.output))
