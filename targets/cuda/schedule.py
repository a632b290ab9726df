"""Binds every computation to the blocks and threads of a GPU.

Matrix products and reductions take the schedules that TVM has for them (dlight); what these do not
fit runs one element a thread, neighbouring threads on neighbouring elements.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.error import InternalError
from tvm.s_tir import dlight

from graphopt.targets.relax.schedule import SCHEDULED, put_together

THREADS = 256

_RULES = (dlight.gpu.Matmul, dlight.gpu.GEMV, dlight.gpu.Reduction, dlight.gpu.GeneralReduction)


def schedule(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Schedule every kernel that is not marked as scheduled already."""
    result = tvm.IRModule(dict(module.functions), attrs=module.attrs)
    for name, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get(SCHEDULED, False):
            result[name] = _scheduled(function, target).with_attr(SCHEDULED, True)
    return result


def _scheduled(function: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc:
    plain, asserts = _without_asserts(function)
    named = plain.with_attr("global_symbol", "main")
    found = _by_rule(named, target) or _one_element_a_thread(named)
    return _with_asserts(found.mod["main"], asserts).without_attr("global_symbol")


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
    kinds = [iteration.iter_type for iteration in found.get(block).iter_vars]
    loops = found.get_loops(block)
    spatial = [loop for loop, kind in zip(loops, kinds) if kind == tirx.IterVar.DataPar]
    reductions = [loop for loop, kind in zip(loops, kinds) if kind != tirx.IterVar.DataPar]
    if not spatial:
        spatial = [found.add_unit_loop(loops[0] if loops else block)]
    found.reorder(*spatial, *reductions)
    outer, inner = found.split(found.fuse(*spatial), factors=[None, THREADS])
    found.bind(outer, "blockIdx.x")
    found.bind(inner, "threadIdx.x")
    for stage in found.get_child_blocks(inner):
        if found.get(stage).name_hint != found.get(block).name_hint:
            found.set_scope(stage, 0, "local")
    if reductions:
        found.decompose_reduction(block, reductions[0])


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
