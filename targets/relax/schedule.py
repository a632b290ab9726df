"""Loops of generated kernels: stages inlined or brought together, reductions split and turned.

TE gives one loop nest a stage. Here a stage that is read once disappears into its reader; the others
are computed where the last stage loops over rows, so that what they hold stays in cache; a reduction
starts from its identity even when it has nothing to reduce, and runs with the last axis innermost,
which is the one that LLVM turns into vectors.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

SCHEDULED = "tirx.is_scheduled"

# TVM's LLVM backend looks through names within names again at every level: the time it takes doubles
# with each, so that a chain of thirty ops written as one expression would not compile within an hour.
MAX_NAMES = 8


def schedule(module: tvm.IRModule) -> tvm.IRModule:
    """Schedule every kernel that is not marked as scheduled already."""
    result = tvm.IRModule(dict(module.functions), attrs=module.attrs)
    for name, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get(SCHEDULED, False):
            result[name] = _scheduled(function)
    return result


def _scheduled(function: tirx.PrimFunc) -> tirx.PrimFunc:
    named = _name_operands(function).with_attr("global_symbol", "main")
    # An expression with names of its own may have been used twice in a larger one.
    unique = s_tir.transform.ConvertSSA()(tvm.IRModule({"main": named}))
    found = s_tir.Schedule(unique)
    blocks = found.get_child_blocks(found.get_sblock("root"))
    remaining = [block for block in blocks if not _inlined(found, block)]
    _gather_rows(found, remaining)
    for block in remaining:
        _split_reduction(found, block)
    scheduled = found.mod["main"].with_attr(SCHEDULED, True)
    return scheduled.without_attr("global_symbol")


def _name_operands(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Give every float and condition that is read a name of its own.

    TVM simplifies them like real numbers: `(x + c) - c` to x, `x - x` to 0, `not x < y` to `y <= x`,
    which is wrong after rounding and for NaN and infinity. It does not look behind names.
    """

    def named(store: tirx.BufferStore, mutator: Any) -> tirx.BufferStore:
        def name(load: tvm.ir.TensorLoad) -> Any:
            if str(load.ty.dtype) not in _NAMED or load.source.same_as(store.buffer):
                return load
            alias = tirx.Var("x", str(load.ty.dtype))
            return tirx.Let(alias, load, alias)

        value = tvm_ffi.structural_map(store.value, (tvm.ir.TensorLoad, name))
        return tirx.BufferStore(store.buffer, value, store.indices)

    body = tvm_ffi.structural_mutate(function.body, (tirx.BufferStore, named))
    return function.with_body(body)


_NAMED = frozenset(["bool", "float16", "float32", "float64"])


def _inlined(found: s_tir.Schedule, block: Any) -> bool:
    """Put a stage into the one that reads it, if that does not repeat costly work."""
    readers = found.get_consumers(block)
    if len(readers) != 1 or _reduced(found, block):
        return False
    stage, reader = found.get(block), found.get(readers[0])
    if _names(stage.body) > MAX_NAMES:
        return False
    cheap = not _reduced(found, readers[0]) and _is_cheap(stage.body)
    if not cheap and not _reads_once(reader, stage.writes[0].source):
        return False
    try:
        found.compute_inline(block)
    except s_tir.ScheduleError:
        return False
    return True


def _names(body: tirx.Stmt) -> int:
    """How many names the expressions of a stage introduce."""
    count = 0

    def visit(expr: tvm.ir.Expr) -> None:
        nonlocal count
        count += isinstance(expr, tirx.Let)

    tvm_ffi.structural_walk(body, (tvm.ir.Expr, visit))
    return count


def _reduced(found: s_tir.Schedule, block: Any) -> bool:
    return found.get(block).init is not None


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
    ["if_then_else", "reinterpret", "isnan", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"]
    + ["shift_left", "shift_right", "abs", "fabs", "floor", "ceil", "trunc", "nearbyint", "sqrt"]
)


def _reads_once(reader: s_tir.SBlock, buffer: tirx.Buffer) -> bool:
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

# ------------------------------------------------------------------- reductions


def _split_reduction(found: s_tir.Schedule, block: Any) -> None:
    """Give the identity a loop nest of its own, and turn the loops for vectors."""
    if not _reduced(found, block):
        return
    loops = found.get_loops(block)
    realize = found.get(loops[-1]).body
    kinds = [_kinds(realize, found.get(loop).loop_var) for loop in loops]
    reductions = [loop for loop, kind in zip(loops, kinds) if kind == {_REDUCTION}]
    if not reductions:
        return
    inner = loops[loops.index(reductions[0]) - 1] if loops.index(reductions[0]) else None
    if inner is not None and _is_contiguous(realize, found.get(inner).loop_var):
        if kinds[loops.index(inner)] == {_SPATIAL} and found.get(inner).body.same_as(
            found.get(reductions[0])
        ):
            found.reorder(*reductions, inner)
    found.decompose_reduction(block, reductions[0])


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
