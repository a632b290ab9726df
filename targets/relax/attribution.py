"""Which nodes of the graph each kernel call of a fused module computes."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import tvm
from tvm import relax
from tvm_ffi import StructuralKey

from graphopt.ir.graph import Node

Emitted = Mapping[str, Node]
"""See `graphopt.targets.relax.lowering.Lowered`."""


def attribute(module: tvm.IRModule, fused: tvm.IRModule, emitted: Emitted) -> dict[str, list[Node]]:
    """The nodes behind each variable of the fused `main` that a kernel computes.

    Fusion renames variables, reorders them, and makes one function of all groups of equal code. So
    a call is known by its value: by its kernel, and the values of its operands. Calls of equal
    value are taken in order.

    Args:
        module: before FuseOps; the variables of its `main` are those of `emitted`.
        fused: after FuseOps and before FuseTIR.
    """
    values = _Values()
    nodes: dict[int, deque[Node]] = defaultdict(deque)
    for variable, value in values.of_calls(module):
        if variable in emitted:
            nodes[value].append(emitted[variable])
    found: dict[str, list[Node]] = defaultdict(list)
    for variable, value in values.of_calls(fused):
        if nodes[value]:
            found[variable].append(nodes[value].popleft())
    return found


class _Values:
    """Numbers for expressions, the same for equal ones whatever their variables are called."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def of_calls(self, module: tvm.IRModule) -> Iterator[tuple[str, int]]:
        """For each kernel call the variable of `main` that it is computed for, and its value."""
        main = module["main"]
        known = {param: self._number(("input", k)) for k, param in enumerate(main.params)}
        for variable, expr in _bindings(main):
            group = _group(expr, module)
            if group is None:
                known[variable] = self._value(expr, known)
                if _kernel(expr):
                    yield variable.name, known[variable]
                continue
            inner = {param: self._value(arg, known) for param, arg in zip(group.params, expr.args)}
            for name, step in _bindings(group):
                inner[name] = self._value(step, inner)
                if _kernel(step):
                    yield variable.name, inner[name]
            known[variable] = self._value(group.body.body, inner)

    def _value(self, expr: Any, known: Mapping[Any, int]) -> int:
        if expr in known:
            return known[expr]
        if isinstance(expr, relax.Call):
            # Not by sizes, which go by other variables in a group, and which operands decide.
            operands = expr.args[1].fields if _kernel(expr) else expr.args
            tensors = [a for a in operands if isinstance(a.ty, (relax.TensorType, relax.TupleType))]
            key = _kernel(expr) or str(expr.op)
            return self._number((key, *(self._value(a, known) for a in tensors)))
        if isinstance(expr, relax.Tuple):
            return self._number(("tuple", *(self._value(f, known) for f in expr.fields)))
        if isinstance(expr, relax.TupleGetItem):
            return self._number((expr.index, self._value(expr.tuple_value, known)))
        return self._number(StructuralKey(expr))

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _kernel(expr: Any) -> str:
    """The name of the kernel that an expression calls, "" if it calls none."""
    is_call = isinstance(expr, relax.Call) and expr.op == tvm.ir.Op.get("relax.call_tir")
    return str(expr.args[0].name_hint) if is_call else ""


def _group(expr: Any, module: tvm.IRModule) -> relax.Function | None:
    """The function of a fused group that an expression calls."""
    if not isinstance(expr, relax.Call) or not isinstance(expr.op, tvm.ir.GlobalVar):
        return None
    function = module[expr.op]
    return function if "Primitive" in (function.attrs or {}) else None


def _bindings(function: relax.Function) -> Iterator[tuple[relax.Var, Any]]:
    for block in function.body.blocks:
        for binding in block.bindings:
            if isinstance(binding, relax.VarBinding):
                yield binding.var, binding.value
