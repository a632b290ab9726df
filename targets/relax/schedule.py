"""Loops of generated kernels: stages brought together, reductions split and turned.

TE gives one loop nest a stage. Here a stage that only one other reads is computed where that one
needs it, element by element; the others where the last stage loops over rows, so that what they
hold stays in cache. A reduction starts from its identity even when it has nothing to reduce, and
runs with the last axis innermost, which is the one that LLVM turns into vectors.

Stages that compute are not substituted into one another: each leaves its element in a local
variable. TVM simplifies floats within one expression like real numbers, `(x + c) - c` to x and
`not x < y` to `y <= x`, which is wrong after rounding and for NaN; and expressions would grow with
every use.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.script import tirx as T

SCHEDULED = "tirx.is_scheduled"


def schedule(module: tvm.IRModule) -> tvm.IRModule:
    """Schedule every kernel that is not marked as scheduled already."""
    result = tvm.IRModule(dict(module.functions), attrs=module.attrs)
    for name, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get(SCHEDULED, False):
            result[name] = _scheduled(function)
    return result


def _scheduled(function: tirx.PrimFunc) -> tirx.PrimFunc:
    found = s_tir.Schedule(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))
    stages = put_together(found, found.get_child_blocks(found.get_sblock("root")))
    _gather_rows(found, stages)
    serial = [total for block in stages for total in _split_reduction(found, block)]
    _vectorize(found, found.get_child_blocks(found.get_sblock("root")))
    scheduled = _with_fences(found.mod["main"], serial).with_attr(SCHEDULED, True)
    return scheduled.without_attr("global_symbol")


# --------------------------------------------------------------------- elements


def put_together(found: s_tir.Schedule, blocks: list[Any]) -> list[Any]:
    """Compute stages element by element in the one that needs them; returns those with loops."""
    home: dict[str, Any] = {}
    kept: list[Any] = []
    for block in reversed(blocks):
        readers = found.get_consumers(block)
        homes = {found.get(r).name_hint: home[found.get(r).name_hint] for r in readers}
        name, stage = found.get(block).name_hint, found.get(block)
        anchors = {found.get(anchor).name_hint: anchor for anchor in homes.values()}
        if len(anchors) == 1 and _is_worth_repeating(found, stage, readers, *anchors.values()):
            (anchor,) = anchors.values()
            if _moves(stage) or any(_guards(found.get(r), stage) for r in readers):
                with suppress(s_tir.ScheduleError):
                    found.compute_inline(block)
                    continue
            else:
                with suppress(s_tir.ScheduleError):
                    found.compute_at(block, found.get_loops(anchor)[-1], preserve_unit_loops=True)
                    home[name] = anchor
                    continue
        home[name] = block
        kept.append(block)
    return kept[::-1]


def _is_worth_repeating(
    found: s_tir.Schedule, stage: s_tir.SBlock, readers: list[Any], anchor: Any
) -> bool:
    """True if computing the stage wherever it is read repeats nothing costly."""
    nests = [found.get(block) for block in [*readers, anchor]]
    if stage.init is not None or any(nest.init is not None for nest in nests):
        return False
    if not found.get_loops(anchor):
        return False
    buffer = stage.writes[0].source
    return _is_cheap(stage.body) or all(reads_once(found.get(r), buffer) for r in readers)


def _moves(stage: s_tir.SBlock) -> bool:
    """True if the stage takes its element from somewhere, as it is."""
    return isinstance(stage.body, tirx.BufferStore) and isinstance(
        stage.body.value, tvm.ir.TensorLoad
    )


def _guards(reader: s_tir.SBlock, stage: s_tir.SBlock) -> bool:
    """True if `reader` reads what `stage` writes under a condition only."""
    buffer = stage.writes[0].source
    guarded: list[Any] = []

    def visit(call: tvm.ir.Call) -> None:
        if str(getattr(call.op, "name", "")).endswith("if_then_else"):
            tvm_ffi.structural_walk(call, (tvm.ir.TensorLoad, guarded.append))

    tvm_ffi.structural_walk(reader.body, (tvm.ir.Call, visit))
    return any(load.source.same_as(buffer) for load in guarded)


def _is_cheap(body: tirx.Stmt) -> bool:
    """True for loads, stores, arithmetic and choices; a function or a quotient is worth keeping."""
    costly: list[Any] = []

    def visit(expr: tvm.ir.Expr) -> None:
        if isinstance(expr, tvm.ir.Call):
            if str(expr.op.name).rpartition(".")[2] not in _CHEAP_CALLS:
                costly.append(expr)
        elif isinstance(expr, tirx.Div) and "float" in str(expr.ty.dtype):
            costly.append(expr)

    tvm_ffi.structural_walk(body, (tvm.ir.Expr, visit))
    return not costly


_CHEAP_CALLS = frozenset(
    [
        "if_then_else",
        "reinterpret",
        "isnan",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "bitwise_not",
    ]
    + ["shift_left", "shift_right", "abs", "fabs", "floor", "ceil", "trunc", "nearbyint", "sqrt"]
)


def reads_once(reader: s_tir.SBlock, buffer: tirx.Buffer) -> bool:
    """True if no two iterations of `reader` read the same element of `buffer`."""
    indices = [region.region for region in reader.reads if region.source.same_as(buffer)]
    used = {v for index in indices for part in index for v in _variables(part.min)}
    return all(iteration.var in used for iteration in reader.iter_vars if not _is_one(iteration))


def _variables(expr: Any) -> list[Any]:
    return list(tirx.analysis.undefined_vars(expr))


def _is_one(iteration: Any) -> bool:
    extent = iteration.dom.extent
    return isinstance(extent, tirx.IntImm) and extent.value == 1


# ------------------------------------------------------------------------- rows


def _gather_rows(found: s_tir.Schedule, blocks: list[Any]) -> None:
    """Compute all stages within the outer loops of the last one, where each is used only there."""
    outputs = sum(not found.get_consumers(block) for block in blocks)
    if len(blocks) < 2 or outputs > 1:
        return
    *stages, last = blocks
    shared = _shared_loops(found, blocks)
    if not shared:
        return
    at = found.get_loops(last)[shared - 1]
    for stage in reversed(stages):
        with suppress(s_tir.ScheduleError):  # an axis without elements is no region to cover
            found.compute_at(stage, at, preserve_unit_loops=True)


def _shared_loops(found: s_tir.Schedule, blocks: list[Any]) -> int:
    """How many leading loops index every intermediate buffer in the same way everywhere."""
    inner = {found.get(block).writes[0].source for block in blocks[:-1]}
    shared = len(found.get(blocks[-1]).iter_vars) - 1
    for block in map(found.get, blocks):
        for region in block.reads:
            if region.source not in inner:
                continue
            same = 0
            for part, iteration in zip(region.region, block.iter_vars):
                if not (iteration.var.same_as(part.min) and iteration.iter_type == _SPATIAL):
                    break
                same += 1
            shared = min(shared, same)
    return shared


_SPATIAL, _REDUCTION = 0, 2
_FENCED = ("float32", "float64")

# ------------------------------------------------------------------- reductions


def _split_reduction(found: s_tir.Schedule, block: Any) -> list[Any]:
    """Give the identity a loop nest of its own, and turn the loops for vectors.

    Returns the buffers that are added up one element after the other.
    """
    if found.get(block).init is None:
        return []
    loops = found.get_loops(block)
    realize = found.get(loops[-1]).body
    kinds = [_kinds(realize, found.get(loop).loop_var) for loop in loops]
    reductions = [loop for loop, kind in zip(loops, kinds) if kind == {_REDUCTION}]
    if not reductions:
        return []
    inner = loops[loops.index(reductions[0]) - 1] if loops.index(reductions[0]) else None
    if (
        inner is not None
        and _is_contiguous(realize, found.get(inner).loop_var)
        and kinds[loops.index(inner)] == {_SPATIAL}
        and found.get(inner).body.same_as(found.get(reductions[0]))
    ):
        found.reorder(*reductions, inner)
        found.decompose_reduction(block, reductions[0])
        return []
    found.decompose_reduction(block, reductions[0])
    return [region.source for region in found.get(block).writes]


def _with_fences(function: tirx.PrimFunc, totals: list[Any]) -> tirx.PrimFunc:
    """Keep sums of `totals` apart from the products that they add up.

    LLVM makes vectors of some of these products and fuses others with the sum, which rounds once
    less: a row would have other bits in another batch.
    """

    def fenced(store: tirx.BufferStore) -> tirx.Stmt:
        dtype = str(store.buffer.dtype)
        if not (dtype in _FENCED and any(map(store.buffer.same_as, totals))):
            return store
        if not isinstance(store.value, tirx.Add):
            return store
        term = T.call_llvm_pure_intrin(dtype, "llvm.arithmetic.fence", store.value.b)
        return tirx.BufferStore(store.buffer, store.value.a + term, store.indices)

    if not totals:
        return function
    body = tvm_ffi.structural_map(function.body, (tirx.BufferStore, fenced))
    return tirx.PrimFunc(function.params, body, function.ret_type, function.attrs)


def _kinds(realize: s_tir.SBlockRealize, loop: Any) -> set[int]:
    """What kinds of iteration a loop variable drives."""
    pairs = zip(realize.block.iter_vars, realize.iter_values)
    return {i.iter_type for i, value in pairs if any(loop.same_as(v) for v in _variables(value))}


def _is_contiguous(realize: s_tir.SBlockRealize, loop: Any) -> bool:
    """True if some operand is read along its last axis by this loop."""
    pairs = zip(realize.block.iter_vars, realize.iter_values)
    driven = {i.var for i, value in pairs if any(loop.same_as(v) for v in _variables(value))}
    lasts = [region.region[-1].min for region in realize.block.reads if len(region.region)]
    return any(set(_variables(last)) & driven for last in lasts)


# ---------------------------------------------------------------------- vectors

_LANES = (16, 8, 4)


def _vectorize(found: s_tir.Schedule, blocks: list[Any]) -> None:
    """Make vectors of a single stage that is plain arithmetic along rows of fixed length.

    LLVM unrolls short rows before it looks for vectors, and then makes them across rows, with
    gathers and scatters: 12 times slower on rows of 32.
    """
    if len(blocks) != 1 or not found.get_loops(blocks[0]):
        return
    stage, last = found.get(blocks[0]), found.get_loops(blocks[0])[-1]
    extent = found.get(last).extent
    lanes = [n for n in _LANES if isinstance(extent, tirx.IntImm) and int(extent) % n == 0]
    if not lanes or stage.init is not None or not _is_plain(stage):
        return
    _, inner = found.split(last, [None, lanes[0]])
    found.vectorize(inner)


def _is_plain(stage: s_tir.SBlock) -> bool:
    """True if a stage computes by operators alone, on elements that lie along its last axis."""
    calls: list[Any] = []
    tvm_ffi.structural_walk(stage.body, (tvm.ir.Call, calls.append))
    regions = [*stage.reads, *stage.writes]
    plain = all(str(region.source.ty.dtype) in _PLAIN for region in regions)
    if calls or not plain or not stage.iter_vars:
        return False
    variable = stage.iter_vars[-1].var
    for region in regions:
        indices = [part.min for part in region.region]
        moving = [index for index in indices if any(map(variable.same_as, _variables(index)))]
        if moving and not (len(moving) == 1 and indices[-1].same_as(variable)):
            return False
    return True


_PLAIN = frozenset(["float32", "float64", "int32", "int64"])
