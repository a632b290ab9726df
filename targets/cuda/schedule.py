"""Binds every computation to the blocks and threads of a GPU.

Matrix products and reductions take the schedules that TVM has for them (dlight); what these do not
fit runs one element a thread, neighbouring threads on neighbouring elements.
"""

from __future__ import annotations

from contextlib import suppress
from math import prod
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.error import InternalError
from tvm.s_tir import dlight

from graphopt.targets.relax.schedule import SCHEDULED, put_together, reads_once

THREADS = 256
_SHORT = 32  # elements that one thread adds up
_WINDOW = 256

COMPACT = "s_tir.CompactBufferAllocation"
"""TVM's pass that makes buffers of a kernel as small as loops allow. It takes time by the square of
what a kernel has; those that are not scheduled here have no use for it."""

_COMPACTED = tvm.transform.Sequential(
    [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerCrossThreadReduction(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LiftThreadBinding(),
        s_tir.transform.ManifestSharedMemoryLocalStage(),
        s_tir.transform.CompactBufferAllocation(),
    ]
)  # as TVM's pipeline for this target begins

_RULES = (dlight.gpu.Matmul, dlight.gpu.GEMV, dlight.gpu.Reduction, dlight.gpu.GeneralReduction)


def schedule(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Schedule every kernel that is not marked as scheduled already, with buffers made compact."""
    result = tvm.IRModule(dict(module.functions), attrs=module.attrs)
    for name, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get(SCHEDULED, False):
            result[name] = _scheduled(function, target).with_attr(SCHEDULED, True)
    return result


def _scheduled(function: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc:
    plain, asserts = _without_asserts(function)
    named = plain.with_attr("global_symbol", "main")
    found = _short_sums(named) or _by_rule(named, target) or _one_element_a_thread(named)
    with target:
        compact = _COMPACTED(found.mod)["main"]
    return _with_asserts(compact, asserts).without_attr("global_symbol")


def _short_sums(function: tirx.PrimFunc) -> s_tir.Schedule | None:
    """A thread for each reduction of few elements, and for what follows from it.

    TVM's rules would give each a block of as many threads as it has elements.
    """
    found = s_tir.Schedule(tvm.IRModule({"main": function}))
    root = found.get_sblock("root")
    stages = put_together(found, found.get_child_blocks(root))
    if _names(found, stages) != _names(found, found.get_child_blocks(root)):
        return None  # a stage within the loops of another would be left behind, on the host
    reducing = [k for k, block in enumerate(stages) if found.get(block).init is not None]
    if len(reducing) != 1 or not _is_short(found.get(stages[reducing[0]])):
        return None
    before, reduction, after = _around(stages, reducing[0])
    written = found.get(reduction).writes[0].source
    if len(after) > 1 or any(not reads_once(found.get(block), written) for block in after):
        return None
    if any(_readers(found, block) != _names(found, [reduction]) for block in before):
        return None
    for joined in (_into_what_follows, _into_the_sum) if after else (_alone,):
        with suppress(s_tir.ScheduleError):
            tried = found.copy()
            joined(tried, reduction, *after)
            for block in reversed(before):
                tried.compute_at(block, tried.get_loops(reduction)[-1], preserve_unit_loops=True)
                tried.set_scope(block, 0, "local")
            count = sum(not _is_spatial(i) for i in tried.get(reduction).iter_vars)
            tried.decompose_reduction(reduction, tried.get_loops(reduction)[-count])
            return tried
    return None


def _alone(found: s_tir.Schedule, reduction: Any) -> None:
    _bind_spatial(found, reduction)


def _into_what_follows(found: s_tir.Schedule, reduction: Any, after: Any) -> None:
    found.compute_at(reduction, _bind_spatial(found, after), preserve_unit_loops=True)
    found.set_scope(reduction, 0, "local")


def _into_the_sum(found: s_tir.Schedule, reduction: Any, after: Any) -> None:
    """The other way round, for windows: TVM cannot tell which elements another stage needs."""
    found.reverse_compute_at(after, _bind_spatial(found, reduction), preserve_unit_loops=True)
    found.set_scope(reduction, 0, "local")


def _is_short(stage: s_tir.SBlock) -> bool:
    """True for a reduction of few elements of one tensor: products of matrices have two.

    Of a window there may be more: the results beside it read most of the same ones.
    """
    extents = [i.dom.extent for i in stage.iter_vars if not _is_spatial(i)]
    if not all(isinstance(extent, tirx.IntImm) for extent in extents):
        return False
    elements = prod(int(extent) for extent in extents)
    short = elements <= (_WINDOW if _is_window(stage) else _SHORT)
    return short and len({region.source for region in stage.reads}) == 1


def _is_window(stage: s_tir.SBlock) -> bool:
    """True where a place depends on which result is computed and on which element it is of that."""
    kinds = [[i.var for i in stage.iter_vars if _is_spatial(i) is kind] for kind in (True, False)]
    places = [part.min for region in stage.reads for part in region.region]
    variables = [set(tirx.analysis.undefined_vars(place)) for place in places]
    return any(all(not used.isdisjoint(kind) for kind in kinds) for used in variables)


def _around(stages: list[Any], at: int) -> tuple[list[Any], Any, list[Any]]:
    return stages[:at], stages[at], stages[at + 1 :]


def _readers(found: s_tir.Schedule, block: Any) -> set[str]:
    return _names(found, found.get_consumers(block))


def _names(found: s_tir.Schedule, blocks: list[Any]) -> set[str]:
    return {str(found.get(block).name_hint) for block in blocks}


def _is_spatial(iteration: Any) -> bool:
    return bool(iteration.iter_type == tirx.IterVar.DataPar)


def _by_rule(function: tirx.PrimFunc, target: tvm.target.Target) -> s_tir.Schedule | None:
    if not _reduces(function):
        return None
    for rule in _RULES:
        # Rules refuse by returning None, but some give up half way with an error.
        with suppress(s_tir.ScheduleError, InternalError, AssertionError, ValueError, IndexError):
            found = rule().apply(function, target, False)
            if isinstance(found, s_tir.Schedule):
                # Some reductions, such as a maximum that keeps NaN, cannot be shared by threads.
                with target:
                    s_tir.transform.LowerCrossThreadReduction()(found.mod)
                return found
    return None


def _reduces(function: tirx.PrimFunc) -> bool:
    found = s_tir.Schedule(tvm.IRModule({"main": function}))
    blocks = found.get_child_blocks(found.get_sblock("root"))
    return any(found.get(block).init is not None for block in blocks)


def _one_element_a_thread(function: tirx.PrimFunc) -> s_tir.Schedule:
    found = s_tir.Schedule(tvm.IRModule({"main": function}))
    blocks = found.get_child_blocks(found.get_sblock("root"))
    anchors = put_together(found, blocks)
    for block in anchors:
        _bind(found, block)
    return found


def _bind(found: s_tir.Schedule, block: Any) -> None:
    reductions = [
        loop
        for loop, iteration in zip(found.get_loops(block), found.get(block).iter_vars)
        if not _is_spatial(iteration)
    ]
    inner = _bind_spatial(found, block)
    for stage in found.get_child_blocks(inner):
        if found.get(stage).name_hint != found.get(block).name_hint:
            found.set_scope(stage, 0, "local")
    if reductions:
        found.decompose_reduction(block, reductions[0])


def _bind_spatial(found: s_tir.Schedule, block: Any) -> Any:
    """An element of a block's result on each thread; the loop of threads."""
    kinds = [_is_spatial(iteration) for iteration in found.get(block).iter_vars]
    loops = found.get_loops(block)
    spatial = [loop for loop, is_spatial in zip(loops, kinds) if is_spatial]
    reductions = [loop for loop, is_spatial in zip(loops, kinds) if not is_spatial]
    if not spatial:
        spatial = [found.add_unit_loop(loops[0] if loops else block)]
    found.reorder(*spatial, *reductions)
    outer, inner = found.split(found.fuse(*spatial), factors=[None, THREADS])
    found.bind(outer, "blockIdx.x")
    found.bind(inner, "threadIdx.x")
    return inner


# ---------------------------------------------------------------------- asserts


def _without_asserts(function: tirx.PrimFunc) -> tuple[tirx.PrimFunc, list[Any]]:
    """The kernel less the conditions on sizes before its loops, which the host checks."""
    root = function.body.block
    parts = list(root.body.seq) if isinstance(root.body, tirx.SeqStmt) else [root.body]
    asserts = [part for part in parts if isinstance(part, tirx.AssertStmt)]
    if not asserts:
        return function, []
    rest = [part for part in parts if not isinstance(part, tirx.AssertStmt)]
    return _with_body(function, rest), asserts


def _with_asserts(function: tirx.PrimFunc, asserts: list[Any]) -> tirx.PrimFunc:
    if not asserts:
        return function
    return _with_body(function, [*asserts, function.body.block.body])


def _with_body(function: tirx.PrimFunc, parts: list[Any]) -> tirx.PrimFunc:
    root = function.body.block
    body = parts[0] if len(parts) == 1 else tirx.SeqStmt(parts)
    block = s_tir.SBlock([], [], [], root.name_hint, body, None, root.alloc_buffers)
    return function.with_body(s_tir.SBlockRealize([], function.body.predicate, block))
