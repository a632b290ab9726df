"""Squeezed axes of free size stay, as they do for every size but 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._rowwise import is_elementwise
from graphopt.passes._shapes import ints_of
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter, erase_dead

Lost = dict[Value, bool]
"""Values that lose axes in the source where their sizes are 1; True: the first axis alone."""

_ALONG_AXIS = frozenset(
    ["Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "ArgMax", "ArgMin", "Split", "TopK"]
)
_REASON = "what reads it computes something else where that size is 1; write reshape or squeeze(1)"


class SettleRanks(Pass):
    """Keeps the axes of free size that a Squeeze, or an If around one, drops where they are 1.

    Needs that what reads the result gives the same elements without that axis, or nothing at all.
    PyTorch writes `squeeze()` so: for one sample the file gives a tensor of lower rank than for two
    or than it declares. Here the rank is that of any other size. Fidelity: exact.

    Before:
        (float[N,4] x) => (float[N] y) <float[4,1] w> {
            h = MatMul(x, w)
            s = Squeeze(h)
            y = Sigmoid(s)
        }

    After:
        (float[N,4] x) => (float[N] y) <float[4,1] w, int64[1] axes = {1}> {
            h = MatMul(x, w)
            s = Squeeze(h, axes)
            y = Sigmoid(s)
        }
    """

    name = "settle-ranks"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        found = [node for node in graph.nodes if _loses(node) is not None]
        if not found:
            return False
        trial = graph.clone()
        if not _is_safe(trial, _settle(trial)):
            for node in found:
                ctx.stats.refuse("settle_rank", node, _REASON)
            return False
        ctx.stats.hits["settle_rank"] += len(_settle(graph))
        return True


def _settle(graph: Graph) -> dict[Value, bool]:
    """Keep the axes everywhere: what has them now, and whether that is the first axis alone."""
    settled = {}
    for node in list(graph.nodes):  # in order: what one squeezes may have been squeezed before
        found = _loses(node)
        if found is not None:
            data, units, free = found
            rw = Rewriter(node, [node])
            kept = rw.op.Squeeze(data, rw.ints(*units)) if units else rw.op.Identity(data)
            graph.replace_uses(node.output, kept)
            erase_dead(graph, [node])
            settled[kept] = free == [0]
    return settled


def _loses(node: Node) -> tuple[Value, list[int], list[int]] | None:
    """What `node` squeezes, its axes of size 1, and those of free size that it drops if they are 1.

    The branches of an If give the same elements, whatever it asks.
    """
    if node.op == "Squeeze" and node.input(1) is None:
        data = node.inputs[0]
        if data is None or data.shape is None:
            return None
        units = [axis for axis, size in enumerate(data.shape) if size == 1]
        free = [axis for axis, size in enumerate(data.shape) if not isinstance(size, int)]
        return (data, units, free) if free else None
    if node.op != "If" or len(node.outputs) != 1:
        return None
    squeezed = [_squeezed(node.attrs[name]) for name in ("then_branch", "else_branch")]
    if None in squeezed or squeezed[0][0] is not squeezed[1][0]:  # type: ignore[index]
        return None
    (data, one), (_, other) = squeezed  # type: ignore[misc]
    if data.shape is None or (not one) == (not other):
        return None
    free = [axis % len(data.shape) for axis in one or other]
    return None if any(isinstance(data.shape[axis], int) for axis in free) else (data, [], free)


def _squeezed(branch: Graph) -> tuple[Value, list[int]] | None:
    """What a branch gives, if from around it and as it is there but for these axes."""
    (result,), axes = branch.outputs, []
    node = result.producer
    if node is not None and node.graph is branch:
        if node.op == "Squeeze":
            given = ints_of(node.input(1))
            if given is None:
                return None
            axes = given
        elif node.op != "Identity":
            return None
        result = node.operands[0]
    inside = result.producer is not None and result.producer.graph is branch
    return None if inside else (result, axes)


def _is_safe(graph: Graph, settled: Mapping[Value, bool]) -> bool:
    """True if the elements of every output are the same with and without the axes."""
    lost: Lost = {}
    for node in graph.nodes:
        if any(value in lost for value in _read_inside(node)):
            return False
        if any(value in lost for value in node.inputs):
            loses = _still_loses(node, lost)
            if loses is None:
                return False
            if loses:
                first = all(lost[v] for v in node.inputs if v in lost)
                lost |= dict.fromkeys(node.outputs, first)
        if node.outputs and (own := settled.get(node.outputs[0])) is not None:
            lost[node.output] = own and lost.get(node.output, True)
    return True


def _read_inside(node: Node) -> Iterable[Value | None]:
    for body in node.subgraphs:
        yield from body.outputs
        yield from (value for inner in body.walk() for value in inner.inputs)


def _still_loses(node: Node, lost: Lost) -> bool | None:
    """Whether the result loses the axis too. None where its elements may be others.

    False also where the source fails without the axis: then any answer will do.
    """
    ranks = [value.rank for value in node.inputs if value is not None]
    if None in ranks or any(value.rank is None for value in node.outputs):
        return None
    if is_elementwise(node) or node.op == "Dropout":
        first = all(lost[value] for value in node.inputs if value in lost)
        return _loses_broadcast(node, lost) if first else _meets_scalars(node, lost)
    if not all(lost[value] for value in node.inputs if value in lost):
        return None
    if node.op in _ALONG_AXIS:
        return _along([node.attr("axis", -1)], node.operands[0].rank)
    if node.op.startswith("Reduce"):
        return _along(ints_of(node.input(1)), node.operands[0].rank)
    rule = _RULES.get(node.op)
    return rule(node, lost) if rule is not None else None


def _loses_broadcast(node: Node, lost: Lost) -> bool:
    """Operands line up at their last axes: the first is gone unless another operand has it."""
    ranks = [(v.rank or 0) - (v in lost) for v in node.inputs if v is not None]
    return max(ranks) < (node.output.rank or 0)


def _meets_scalars(node: Node, lost: Lost) -> bool | None:
    others = [value for value in node.inputs if value is not None and value not in lost]
    alone = len(others) == len(node.operands) - 1
    return True if alone and all(value.rank == 0 for value in others) else None


def _along(axes: list[int] | None, rank: int | None) -> bool | None:
    """Of an op along `axes`: counted from the last they stay; one past the last is an error."""
    if axes is None or rank is None:
        return None
    if all(-rank < axis < 0 for axis in axes):
        return True
    return False if rank - 1 in axes else None


def _matmul(node: Node, lost: Lost) -> bool | None:
    a, b = node.inputs
    assert a is not None and b is not None
    if a in lost and b not in lost and a.rank == b.rank == 2:
        return True
    deep = all(value.rank is not None and value.rank > 2 for value in (a, b) if value in lost)
    return _loses_broadcast(node, lost) if deep else None


def _gemm(node: Node, lost: Lost) -> bool | None:
    rows = node.inputs[0] in lost and not any(value in lost for value in node.inputs[1:])
    return False if rows and not node.attr("transA") else None


def _concat(node: Node, lost: Lost) -> bool | None:
    if not all(value in lost for value in node.inputs):
        return False  # operands of different rank
    return _along([node.attr("axis")], node.output.rank)


def _gather(node: Node, lost: Lost) -> bool | None:
    data, ids = node.operands
    axis = node.attr("axis", 0)
    if data in lost:
        return None if ids in lost else _along([axis], data.rank)
    return True if axis == 0 else None


def _reshape(node: Node, lost: Lost) -> bool | None:
    """To sizes that the axis does not change."""
    target = node.inputs[1]
    if node.inputs[0] not in lost or target is None or target.content is None:
        return None
    return None if any(size == 0 for size in target.content.ravel()) else False


def _slice(node: Node, lost: Lost) -> bool | None:
    data = node.inputs[0]
    return _along(ints_of(node.input(3)), data.rank) if data is not None else None


def _squeeze(node: Node, lost: Lost) -> bool | None:
    data, axes = node.inputs[0], ints_of(node.input(1))
    assert data is not None
    found = _along(axes, data.rank)
    if found is None and axes is not None and all(axis >= 0 for axis in axes):
        next_sizes = [data.tensor.dims[axis + 1] for axis in axes]
        return False if any(isinstance(s, int) and s != 1 for s in next_sizes) else None
    return found


def _unsqueeze(node: Node, lost: Lost) -> bool | None:
    return _along(ints_of(node.inputs[1]), node.output.rank)


def _transpose(node: Node, lost: Lost) -> bool | None:
    return False if node.attr("perm") is not None else None


_RULES: dict[str, Callable[[Node, Lost], bool | None]] = {
    "Concat": _concat,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
