"""Which nodes of the graph each kernel call of a fused module computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tvm
from tvm import relax

from graphopt.ir.graph import Node

Emitted = Mapping[str, tuple[str, Node]]
"""See `graphopt.targets.relax.lowering.Lowered`."""


def attribute(module: tvm.IRModule, emitted: Emitted) -> dict[str, list[Node]]:
    """The nodes behind each variable of `main` that a kernel computes.

    Args:
        module: after FuseOps and before FuseTIR. Variables keep their names there, save for the
            results of fused groups, which are known by the kernels that compute them; groups of
            equal code are one function, with the names of the first.
    """
    main = dict(_bindings(module["main"]))
    kept = {name for name in main if name in emitted}
    for function in _groups(module):
        kept |= {
            name for name, value in _bindings(function) if _is_kept(name, value, main, emitted)
        }
    unnamed = {name: use for name, use in emitted.items() if name not in kept}
    found = {}
    for name, value in main.items():
        if name in emitted:
            found[name] = [emitted[name][1]]
        elif isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
            group = _bindings(module[value.op])
            found[name] = list(_nodes(group, main, emitted, unnamed))
    return found


def _is_kept(name: str, value: Any, main: Mapping[str, Any], emitted: Emitted) -> bool:
    """True if a variable of a group is one that was lowered, and no new one of the same name."""
    return name in emitted and name not in main and emitted[name][0] == _kernel(value)


def _nodes(
    group: Iterator[tuple[str, Any]],
    main: Mapping[str, Any],
    emitted: Emitted,
    unnamed: dict[str, tuple[str, Node]],
) -> Iterator[Node]:
    for name, value in group:
        if _is_kept(name, value, main, emitted):
            yield emitted[name][1]
            continue
        kernel = _kernel(value)
        lost = next((key for key, use in unnamed.items() if use[0] == kernel), None)
        if lost is not None:
            yield unnamed.pop(lost)[1]


def _kernel(value: Any) -> str | None:
    """The name of the kernel that a binding calls."""
    if isinstance(value, relax.Call) and value.args and isinstance(value.args[0], tvm.ir.GlobalVar):
        return str(value.args[0].name_hint)
    return None


def _groups(module: tvm.IRModule) -> list[relax.Function]:
    functions = module.functions.items()
    return [
        f for name, f in functions if isinstance(f, relax.Function) and name.name_hint != "main"
    ]


def _bindings(function: relax.Function) -> Iterator[tuple[str, Any]]:
    for block in function.body.blocks:
        for binding in block.bindings:
            if isinstance(binding, relax.VarBinding):
                yield binding.var.name, binding.value
