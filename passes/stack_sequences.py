"""Sequences that loops append to, as results with a row for each step."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.copying import copy_into
from graphopt.ir.dims import Dim, symbols
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType
from graphopt.passes._inline import replace
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter


class StackSequences(Pass):
    """Lets a Loop stack the tensors that it appends to a sequence, and reads them as one tensor.

    Needs a sequence that is empty at first, to which each step appends one tensor of a shape that
    all steps share, and which nothing but the next step and what follows the loop reads. Scripted
    models collect states so: `out.append(h)`, then `torch.stack(out)`. Fidelity: exact.

    Before:
        (float[N,4] x, int64 n) => (float[M,N,4] y) <bool yes = {1}> {
            none = SequenceEmpty()
            h, s = Loop(n, yes, x, none) <
                body = b (int64 i, bool c, float[N,4] u, seq(float) old)
                    => (bool c2, float[N,4] v, seq(float) more) {
                    c2 = Identity(c)
                    v = Relu(u)
                    more = SequenceInsert(old, v)
                }
            >
            y = ConcatFromSequence<axis=0, new_axis=1>(s)
        }

    After:
        (float[N,4] x, int64 n) => (float[M,N,4] y) <bool yes = {1}> {
            h, y = Loop(n, yes, x) <
                body = b (int64 i, bool c, float[N,4] u) => (bool c2, float[N,4] v, float[N,4] v) {
                    c2 = Identity(c)
                    v = Relu(u)
                }
            >
        }
    """

    name = "stack-sequences"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        known = {
            name
            for value in graph.inputs
            for dim in value.shape or ()
            for name in symbols(dim)
        }  # fmt: skip
        for node in graph.walk():
            found = _appended(node, known) if node.op == "Loop" else None
            if found is not None:
                _stack(node, found)
                ctx.stats.hits["append_to_row"] += 1
                changed = True
        return changed


@dataclass(frozen=True)
class _Appended:
    """What the Loop carries at `place` is a sequence to which `insert` appends `tensor`."""

    place: int
    insert: Node
    tensor: Value


def _appended(loop: Node, known: set[str]) -> _Appended | None:
    body: Graph = loop.attrs["body"]
    for place, initial in enumerate(loop.inputs[2:]):
        old, more, result = body.inputs[2 + place], body.outputs[1 + place], loop.outputs[place]
        empty, insert = initial and initial.producer, more.producer
        if not empty or empty.op != "SequenceEmpty" or not insert or insert.graph is not body:
            continue
        tensor = insert.inputs[1] if insert.op == "SequenceInsert" else None
        if tensor is None or insert.input(2) is not None or insert.inputs[0] is not old:
            continue
        alone = len(old.uses) == 1 and len(more.uses) == 1
        dims: tuple[Dim, ...] | None = tensor.shape
        if not alone or dims is None or any(symbols(dim) - known for dim in dims):
            continue
        if all(isinstance(u.user, Node) and _can_read(u.user, tensor) for u in result.uses):
            return _Appended(place, insert, tensor)
    return None


def _can_read(user: Node, tensor: Value) -> bool:
    if user.op != "ConcatFromSequence" or user.attr("new_axis"):
        return user.op in ("ConcatFromSequence", "SequenceAt", "SequenceLength")
    dims = tensor.tensor.dims
    axis = user.attr("axis") % len(dims)
    return dims[axis] == 1 or all(isinstance(dim, int) and dim for dim in dims[axis + 1 :])


def _stack(loop: Node, found: _Appended) -> None:
    """Replace the loop by one that carries no sequence, and what reads that."""
    place, graph = found.place, loop.graph
    assert graph is not None
    body = Graph(loop.attrs["body"].name, parent=graph)
    values: dict[Value, Value] = {}
    copy_into(loop.attrs["body"], body, values)
    outputs, names = list(body.outputs), list(body.output_names)
    more = outputs.pop(1 + place)
    names.append(names.pop(1 + place))
    outputs.append(values.get(found.tensor, found.tensor))
    body.set_outputs(outputs, names)
    assert more.producer is not None
    body.erase(more.producer)
    del body.inputs[2 + place]
    inputs = [value for k, value in enumerate(loop.inputs) if k != 2 + place]
    rw = Rewriter(loop, [loop])
    made = rw.insert("Loop", inputs, {"body": body}, outputs=len(loop.outputs))
    others: list[Value | None] = list(made.outputs)
    rows = others.pop()
    others.insert(place, None)
    users = loop.outputs[place].users
    replace(loop, others)
    for user in users:
        assert rows is not None
        replace(user, [_read(Rewriter(user, [user]), user, rows, found.tensor.tensor)])


def _read(rw: Rewriter, user: Node, rows: Value, tensor: TensorType) -> Value:
    if user.op == "SequenceAt":
        return rw.op.Gather(rows, user.inputs[1], axis=0)
    if user.op == "SequenceLength":
        return rw.op.Squeeze(rw.op.Shape(rows, start=0, end=1), rw.ints(0))
    rank, stacks = len(tensor.dims), bool(user.attr("new_axis"))
    axis = user.attr("axis") % (rank + stacks)
    joins = not stacks and tensor.dims[axis] != 1
    if not stacks and not joins:
        rows = rw.op.Squeeze(rows, rw.ints(axis + 1))
        rank -= 1
    order = [*range(1, rank + 1)]
    order.insert(axis, 0)
    if axis:
        rows = rw.op.Transpose(rows, perm=order)
    if not joins:
        return rows
    rest = [int(dim) for dim in tensor.dims[axis + 1 :]]  # type: ignore[arg-type]
    return rw.op.Reshape(rows, rw.ints(*[0] * axis, -1, *rest))
