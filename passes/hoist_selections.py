"""Ops that read one position of a sequence do so before the sequence is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized

from graphopt.ir.graph import Node, Use, Value
from graphopt.passes._one_position import Place, Selection, at_one, selection
from graphopt.passes._rowwise import operands_at
from graphopt.passes._shapes import ints_of, reshape_target, reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, indices = var("x"), var("indices")
table, ids = const("table"), var("ids")

_COSTLY = frozenset(
    ["MatMul", "MatMulInteger", "Gemm", "Softmax", "LayerNormalization", "graphopt::Attention"]
)


@rule(
    op.Gather(x, indices),
    op.Slice(x, ...),
    op.GatherElements(x, indices),
    op.GatherND(x, indices),
)
def select_first(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """Gather(MatMul(LayerNormalization(x), w), k) -> MatMul(LayerNormalization(Gather(x, k)), w)"""
    chosen = selection(node)
    if chosen is None or chosen.source.producer is None:
        return None
    region, ends = _region(node, chosen)
    if not any(inner.op in _COSTLY for inner in region) and not _copies_less(region, ends):
        return NoMatch("nothing costly is computed for this position alone")
    rebuilt = {value: chosen.of(rw, value, place) for value, place in ends.items()}
    for inner, place in reversed(region.items()):
        rebuilt[inner.output] = _at_one_position(rw, inner, rebuilt, place)
    return reshaped(rw, rebuilt[chosen.source], node.output.shape)


def _copies_less(region: Iterable[Node], ends: Sized) -> bool:
    """True if a transpose moves less, and no more selections are needed for that."""
    return len(ends) == 1 and any(node.op == "Transpose" for node in region)


def _region(root: Node, chosen: Selection) -> tuple[dict[Node, Place], dict[Value, Place]]:
    """What is computed for the position alone, last node first, and what the selection moves to."""
    wanted: dict[Value, Place] = {chosen.source: chosen.place}
    whole: set[Value] = set()
    region: dict[Node, Place] = {}
    for node in _upwards(root):
        place = wanted.get(node.output) if node.outputs else None
        if place is None or node.output in whole:
            continue
        operands = _operands(node, place, chosen)
        if operands is None or any(u.user not in (root, *region) for u in node.output.uses):
            continue
        places = {v: operands[slot] for slot, v in enumerate(node.inputs) if v and slot in operands}
        if any(wanted.get(value, there) != there for value, there in places.items()):
            continue
        region[node] = place
        wanted.update(places)
        whole.update(v for slot, v in enumerate(node.inputs) if v and slot not in operands)
    inner = {node.output for node in region}
    return region, {v: place for v, place in wanted.items() if v not in inner}


def _upwards(root: Node) -> Iterator[Node]:
    node = root._prev
    while node is not None:
        yield node
        node = node._prev


def _operands(node: Node, place: Place, chosen: Selection) -> dict[int, Place] | None:
    """The operands of `node` to select from, and where; None if it must be computed whole."""
    along = operands_at(node, place.axis)
    if along is None or (node.op == "Reshape" and _target(node, place) is None):
        return None
    if place.batch is None:
        found = {slot: Place(axis) for slot, axis in along}
    else:
        batches = dict(operands_at(node, place.batch) or ())
        if not {slot for slot, _ in along} <= batches.keys():
            return None
        found = {slot: Place(axis, batches[slot]) for slot, axis in along}
    values = {slot: node.inputs[slot] for slot in found}
    taken = all(v is not None and chosen.can_take(v, found[slot]) for slot, v in values.items())
    return found if taken else None


def _target(node: Node, place: Place) -> list[int] | None:
    """The constant operand of a Reshape, once it is given one position only."""
    along = operands_at(node, place.axis)
    source = node.inputs[0]
    if not along or source is None:
        return None
    return reshape_target(
        at_one(source.tensor, along[0][1]), at_one(node.output.tensor, place.axis)
    )


def _at_one_position(rw: Rewriter, node: Node, rebuilt: dict[Value, Value], place: Place) -> Value:
    selected = {slot for slot, _ in operands_at(node, place.axis) or ()}
    inputs = [
        rebuilt.get(v, v) if v is not None and slot in selected else v
        for slot, v in enumerate(node.inputs)
    ]
    if node.op == "Reshape":
        target = _target(node, place)
        assert target is not None
        inputs, attrs = [inputs[0], rw.ints(*target)], {}
    else:
        attrs = dict(node.attrs)
    return rw.insert(node.op_type, inputs, attrs, domain=node.domain, origin=node.origin).output


def _position_of(use: Use, axis: int) -> int | None:
    """The one position that a Gather takes along `axis`; None for any other use."""
    if not isinstance(use.user, Node) or use.user.op != "Gather" or use.user.attr("axis") != axis:
        return None
    position = ints_of(use.user.inputs[1])
    return position[0] if position is not None and len(position) == 1 else None


@rule(op.Gather(op.Gather(table, ids).named("rows").shared(), indices))
def select_ids(
    rw: Rewriter, table: Value, ids: Value, rows: Value, indices: Value, node: Node
) -> Value | NoMatch | None:
    """Gather(Gather(t, ids), k, axis=1) -> Gather(t, Gather(ids, k, axis=1)), if only such read it

    As field-aware models (FFM) take from the rows of all fields those for one other field each.
    """
    assert rows.producer is not None
    if rows.producer.attr("axis") != 0 or ids.rank != 2 or node.attr("axis") != 1:
        return None
    places = [_position_of(use, 1) for use in rows.uses]
    columns = ids.tensor.dims[1]
    if None in places or not isinstance(columns, int) or len(set(places)) > columns:
        return NoMatch("rows of all columns of ids are read together")
    return rw.op.Gather(table, rw.op.Gather(ids, indices, axis=1), axis=0)


class HoistSelections(RewritePass):
    """Computes only the position of a sequence that is read, not all positions.

    Needs one position of an axis, taken by a constant or one number per row. A selection moves up
    through ops that compute a position from the same position of operands; attention keeps all keys
    and values and gets one query. The last position, or one given per row of the batch. A selection
    stays where nothing costly would be saved. Ids of which a lookup's rows are only read column by
    column are taken apart before they are looked up. Fidelity: reassociates (a product of fewer
    rows may be summed in another order).

    Before:
        (float[N,20,4] x) => (float[N,8] y) <float[4,8] w, float[8] b, int64 last = {-1}> {
            h = MatMul(x, w)
            g = Add(h, b)
            y = Gather<axis=1>(g, last)
        }

    After:
        (float[N,20,4] x) => (float[N,8] y)
        <float[4,8] w, float[8] b, int64[1] last = {-1}, int64[2] shape = {-1, 8}> {
            s = Gather<axis=1>(x, last)
            h = MatMul(s, w)
            g = Add(h, b)
            y = Reshape(g, shape)
        }
    """

    name = "hoist-selections"
    fidelity = Fidelity.REASSOCIATES
    rules = (select_ids, select_first)
