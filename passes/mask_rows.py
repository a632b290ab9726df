"""Rows that are picked, computed one by one and put back among zeros are all computed."""

from __future__ import annotations

from graphopt.ir.dims import symbols
from graphopt.ir.graph import Node, Value
from graphopt.ir.types import is_float
from graphopt.passes._all_rows import AllRows, Stuck, rows_axis
from graphopt.passes._shapes import ints_of, reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

data, places, updates = var("data"), var("places"), var("updates")
_VIEWS = frozenset(["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"])


@rule(op.ScatterND(data, places, updates, reduction="none"))
def compute_all(
    rw: Rewriter, data: Value, places: Value, updates: Value, node: Node
) -> Value | NoMatch | None:
    """ScatterND(zeros, NonZero(m), f(GatherND(x, NonZero(m)))) -> Where(m, f(x), 0)"""
    mask = _mask_of(places, data)
    pick = None if mask is None else _pick_by(mask)
    if mask is None or pick is None or data.shape is None or updates.shape is None:
        return None
    filler = _same_everywhere(rw, data)
    if filler is None or any(_adds_to(user, node.output) for user in node.output.users):
        return NoMatch("the rows that are left out are computed in another way")
    rows = pick.output.tensor.dims[1]
    computed = _flattened(updates, places)
    axis = rows_axis(computed, rows, data.shape[1:])
    if axis is None:
        return NoMatch("what is put back is not the rows that were picked")
    found = AllRows(
        rw,
        pick,
        lambda value, axis: _picked_from(pick, value, axis),
        sizes=dict.fromkeys(symbols(rows), mask.tensor.dims[0]),
        can_fail=_can_fail,
        harmless=lambda node, inputs: _with_a_step(rw, mask, node, inputs),
    )
    try:
        result = found.of(computed, axis)
    except Stuck as reason:
        return NoMatch(str(reason))
    whole = reshaped(rw, result, data.shape)
    if isinstance(whole, NoMatch):
        return whole
    column = rw.op.Reshape(mask, rw.ints(-1, *[1] * (len(data.shape) - 1)))
    return rw.op.Where(column, whole, filler)


@rule(op.GatherND(data, places, batch_dims=0))
def pick_rows(rw: Rewriter, data: Value, places: Value, node: Node) -> Value | NoMatch | None:
    """GatherND(x, NonZero(m expanded to the shape of x)) -> Reshape(Gather(x, NonZero(m)), [-1])"""
    mask = _mask_of(places, data)
    rank = None if mask is None else data.rank
    if mask is None or rank == 1 or places.shape is None or places.shape[-1] != rank:
        return None
    rows = rw.op.Reshape(rw.op.NonZero(mask), rw.ints(-1))
    return rw.op.Reshape(rw.op.Gather(data, rows, axis=0), rw.ints(-1))


def _nonzero(value: Value | None) -> Value | None:
    """The condition whose places `value` holds, in any shape."""
    node = None if value is None else value.producer
    while node is not None and node.op in _VIEWS:
        node = node.inputs[0].producer if node.inputs[0] is not None else None
    return node.inputs[0] if node is not None and node.op == "NonZero" else None


def _mask_of(places: Value, data: Value) -> Value | None:
    """The mask, bool [rows of data], of the rows that `places` name, all elements or the rows."""
    if places.producer is None or places.producer.op not in ("Reshape", "Transpose"):
        return None
    found = _nonzero(places)
    if found is None or found.shape is None or data.shape is None:
        return None
    if len(found.shape) > 1:  # element by element: a mask of rows, expanded
        expand, each = found.producer, places.producer.inputs[0]
        in_order = each is not None and each.producer is not None and each.producer.op == "NonZero"
        if places.producer.op != "Transpose" or not in_order:
            return None
        if found.shape != data.shape or expand is None or expand.op != "Expand":
            return None
        found = expand.inputs[0]
        ones = (data.shape[0], *[1] * (len(data.shape) - 1))
        if found is None or found.shape != ones or found.producer is None:
            return None
        found = found.producer.inputs[0] if found.producer.op in _VIEWS else None
    fits = found is not None and found.dtype == "bool" and found.shape == data.shape[:1]
    return found if fits else None


def _pick_by(mask: Value) -> Node | None:
    """The NonZero that tells which rows a mask picks."""
    return next((user for user in mask.users if user.op == "NonZero"), None)


def _picked_from(pick: Node, value: Value, axis: int) -> Value | None:
    """What the rows of `value` along `axis` were picked from."""
    node = value.producer
    if node is None or node.op not in ("Gather", "GatherND"):
        return None
    source, indices = node.inputs[0], node.inputs[1]
    if source is None or indices is None or _nonzero(indices) is not pick.inputs[0]:
        return None
    if node.op == "GatherND":
        fits = axis == 0 and not node.attr("batch_dims") and indices.rank == 2
    else:
        fits = indices.rank == 1 and node.attr("axis") % len(value.tensor.dims) == axis
    mask = pick.inputs[0]
    assert mask is not None
    return source if fits and source.tensor.dims[axis] == mask.tensor.dims[0] else None


def _flattened(updates: Value, places: Value) -> Value:
    """What `updates` holds the elements of, where it is a vector of as many as there are places."""
    node = updates.producer
    if node is not None and node.op == "Slice" and updates.rank == 1:
        end = node.inputs[2].content if node.inputs[2] is not None else None
        whole = ints_of(node.inputs[1]) == [0] and end is not None
        if not whole or end.reshape(-1).tolist() != [places.tensor.dims[0]]:  # type: ignore
            return updates
        node = node.inputs[0].producer if node.inputs[0] is not None else None
    if node is None or node.op != "Reshape" or updates.rank != 1 or node.inputs[0] is None:
        return updates
    return node.inputs[0]


def _same_everywhere(rw: Rewriter, data: Value) -> Value | None:
    """The one number that fills `data`."""
    node = data.producer
    if node is not None and node.op == "ConstantOfShape":
        given = node.attr("value")
        return rw.const(0.0 if given is None else given.reshape(()), data.dtype)
    if data.const is not None and data.const.size and (data.const == data.const.flat[0]).all():
        return rw.const(data.const.flat[0], data.dtype)
    return None


def _adds_to(user: Node, value: Value) -> bool:
    """True if `user` puts more rows into `value`: then each row is computed in one of many ways."""
    return user.op.startswith("Scatter") and user.inputs[0] is value


def _can_fail(node: Node) -> str:
    """Why an op may fail for a row that was left out; "" if it does not."""
    if node.op == "Gather" and node.const(1) is None:
        return "an id of a row that is left out may be in no table"
    if node.op in ("Div", "Mod") and not is_float(node.output.dtype):
        return "a row that is left out may divide by zero"
    return ""


def _with_a_step(
    rw: Rewriter, mask: Value, node: Node, inputs: list[Value | None]
) -> list[Value | None]:
    """The inputs of a node, where a row that is left out takes one step of a recurrent layer.

    Its own number may be one that the layer refuses.

    Raises:
        Stuck: there may be no step to take.
    """
    if node.op not in ("RNN", "GRU", "LSTM") or _is_positive(node.input(4)):
        return inputs
    data, steps = node.inputs[0], inputs[4]
    assert data is not None and steps is not None
    length = data.tensor.dims[1 if node.attr("layout", 0) else 0]
    if not isinstance(length, int) or length < 1:
        raise Stuck("a row that is left out may have no steps")
    return [*inputs[:4], rw.op.Where(mask, steps, rw.const(1, steps.dtype)), *inputs[5:]]


def _is_positive(value: Value | None) -> bool:
    """True if all elements are 1 or more, seen through ops that keep or move them; or no value."""
    if value is None:
        return True
    node = value.producer
    while node is not None and node.op in ("Cast", "Gather", "GatherND", "TopK", *_VIEWS):
        node = node.inputs[0].producer if node.inputs[0] is not None else None
    if node is None or node.op not in ("Clip", "Max"):
        return False
    least = node.const(1)
    return least is not None and bool((least >= 1).all())


class MaskRows(RewritePass):
    """Computes all rows of a batch and masks the results, where an exporter selects some rows.

    Needs rows that one mask picks, ops that compute a row from the same row of their operands, and
    results that are put back among equal numbers. So samples without a history: PyTorch models
    leave them out of a recurrent layer or attention. How many rows are left is known only once the
    model runs, and picking them costs more than they do. Rows of which each is computed in one of
    several ways (experts) are left alone, and so is what could fail for a row that is left out;
    recurrent layers take one step for it. Rows that are picked element by element (PyTorch's
    `masked_select`) are picked as rows first.
    Fidelity: reassociates (a product of more rows may be summed in another order).

    Before:
        (float[N,4] x, int64[N] count) => (float[N,8] y)
        <float[4,8] w, int64 none = {0}, int64[1] width = {8}> {
            has = Greater(count, none)
            picked = NonZero(has)
            rows = Transpose(picked)
            s = GatherND(x, rows)
            h = MatMul(s, w)
            n = Shape(count)
            shape = Concat<axis=0>(n, width)
            empty = ConstantOfShape(shape)
            y = ScatterND(empty, rows, h)
        }

    After:
        (float[N,4] x, int64[N] count) => (float[N,8] y)
        <float[4,8] w, int64 none = {0}, int64[2] column = {-1, 1}, float zero = {0}> {
            has = Greater(count, none)
            h = MatMul(x, w)
            m = Reshape(has, column)
            y = Where(m, h, zero)
        }
    """

    name = "mask-rows"
    fidelity = Fidelity.REASSOCIATES
    rules = (pick_rows, compute_all)
