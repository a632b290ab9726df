"""Kernels of a program that do not wait for one another, joined in one launch.

A small batch costs what launches cost, and a program is as long as the longest chain of kernels
that wait for one another if all others are done beside these. Light kernels, which move data more
than they compute, are joined whatever they are; others, which need registers and shared memory,
with calls of the same kernel for as many rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import GlobalVar, Op
from tvm_ffi import StructuralKey

from graphopt.targets.cuda.kernels.joined import is_light, is_repeatable, repeated, side_by_side
from graphopt.targets.relax.direct import LAUNCHING

MOST_PARAMETERS = 480  # of 8 bytes; drivers before CUDA 12.1 take 4,096 bytes, sizes too
_LONGEST_NAME = 200

Names = Mapping[str, Sequence[str]]
"""For each variable that a joined kernel computes those that single ones computed before."""


def join(module: tvm.IRModule) -> tuple[tvm.IRModule, Names]:
    """A scheduled module whose `main` launches fewer kernels, and what they are joined of."""
    kernels = _Kernels(module)
    main, blocks = module["main"], []
    names: dict[str, list[str]] = {}
    for block in main.body.blocks:
        bindings: list[Any] = []
        for run in _runs(block.bindings):
            plain = _is_plain(run[0])
            bindings += _Run(run, kernels, names).joined() if plain else run
        blocks.append(type(block)(bindings))
    body = relax.SeqExpr(blocks, main.body.body)
    joined = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    return kernels.module(joined), names


class _Kernels:
    """The kernels of a module, and those that they are joined in."""

    def __init__(self, module: tvm.IRModule) -> None:
        self._module = module
        self._made: dict[Hashable, GlobalVar] = {}
        self._kinds: dict[GlobalVar, str] = {}
        self.builder = relax.BlockBuilder(module)

    def kind(self, name: GlobalVar) -> str:
        """ "light", "repeatable" or "", which is joined with nothing."""
        if name not in self._kinds:
            kernel = self._module[name]
            kind = ""
            if LAUNCHING not in kernel.attrs:
                kind = "light" if is_light(kernel) else "repeatable" * is_repeatable(kernel)
            self._kinds[name] = kind
        return self._kinds[name]

    def made(self, key: Hashable, name: str, make: Callable[[], tirx.PrimFunc]) -> GlobalVar:
        """The kernel that `make` builds, once for each key."""
        if key not in self._made:
            self._made[key] = self.builder.add_func(make(), name[:_LONGEST_NAME])
        return self._made[key]

    def __getitem__(self, name: GlobalVar) -> tirx.PrimFunc:
        return self._module[name]

    def module(self, main: relax.Function) -> tvm.IRModule:
        """The module with another `main` and the kernels that it calls."""
        used: set[GlobalVar] = set()

        def note(expr: relax.Expr) -> None:
            if isinstance(expr, relax.Call) and expr.op == _CALL_TIR:
                used.add(expr.args[0])

        relax.analysis.post_order_visit(main, note)
        functions = {
            name: function
            for name, function in self.builder.get().functions.items()
            if name in used or not isinstance(function, tirx.PrimFunc)
        }
        functions[self._module.get_global_var("main")] = main
        return tvm.IRModule(functions, attrs=self._module.attrs)


class _Call:
    """A call of a kernel in `main`."""

    def __init__(self, binding: relax.VarBinding) -> None:
        self.binding, self.variable, call = binding, binding.var, binding.value
        self.kernel: GlobalVar = call.args[0]
        self.operands: list[Any] = list(call.args[1].fields)
        type_ = call.ty_args[0]
        self.types = list(type_.fields) if isinstance(type_, relax.TupleType) else [type_]
        self.is_tuple = isinstance(type_, relax.TupleType)

    @property
    def parameters(self) -> int:
        return len(self.operands) + len(self.types)

    @cached_property
    def sizes(self) -> Hashable:
        """What calls of one kernel must have in common to be joined."""
        given = [a.ty if isinstance(a.ty, relax.TensorType) else a for a in self.operands]
        return (self.kernel, *map(StructuralKey, (*given, *self.types)))


class _Run:
    """Bindings of calls and views, one after the other, which may be put in another order."""

    def __init__(
        self, bindings: Sequence[relax.VarBinding], kernels: _Kernels, names: dict[str, list[str]]
    ) -> None:
        self._kernels, self._names = kernels, names
        self._views = [b for b in bindings if not _is_call(b)]
        self._calls = {b.var: _Call(b) for b in bindings if _is_call(b)}
        own = {b.var for b in bindings}
        self._needs = {b.var: own.intersection(_read(b)) for b in bindings}
        self._heights = self._longest_ways(bindings)
        self._done: set[Any] = set()
        self._parts: dict[Any, list[tuple[Any, int]]] = {}  # of a joined tuple, for its elements
        self._bindings: list[Any] = []

    def joined(self) -> list[Any]:
        """Bindings that compute the same variables."""
        waiting = dict(self._calls)
        self._add_views()
        while waiting:
            for call in self._next(waiting):
                del waiting[call.variable]
            self._add_views()
        return self._bindings

    def _longest_ways(self, bindings: Sequence[relax.VarBinding]) -> dict[Any, int]:
        """How many calls wait for one another from each binding on."""
        heights: dict[Any, int] = defaultdict(int)
        for binding in reversed(bindings):
            heights[binding.var] += _is_call(binding)
            for need in self._needs[binding.var]:
                heights[need] = max(heights[need], heights[binding.var])
        return heights

    def _next(self, waiting: Mapping[Any, _Call]) -> list[_Call]:
        """Add calls that may be done now: the one that most others wait for, and what joins it."""
        groups: dict[Hashable, list[_Call]] = defaultdict(list)
        for call in waiting.values():
            if self._needs[call.variable] <= self._done:
                groups[self._group(call)].append(call)
        height = self._heights
        best = max(groups.values(), key=lambda g: max(height[call.variable] for call in g))
        best.sort(key=lambda call: -height[call.variable])  # stable
        chosen: list[_Call] = []
        room = MOST_PARAMETERS
        for call in best:
            room -= call.parameters
            if room >= 0 or not chosen:
                chosen.append(call)
        self._add(chosen)
        self._done.update(call.variable for call in chosen)
        return chosen

    def _group(self, call: _Call) -> Hashable:
        kind = self._kernels.kind(call.kernel)
        return {"light": kind, "repeatable": call.sizes}.get(kind, call)

    def _add(self, calls: list[_Call]) -> None:
        if len(calls) == 1:
            self._bindings.append(calls[0].binding)
            return
        is_light = self._kernels.kind(calls[0].kernel) == "light"
        kernel, operands, results = (_beside if is_light else _repeated)(self._kernels, calls)
        types = [call.types[k] for call, k in results]
        whole = relax.Var(f"{calls[0].variable.name}_joined", relax.TupleType(types))
        self._names[whole.name] = [call.variable.name for call in calls]
        self._bind(whole, relax.op.call_tir(kernel, operands, types))
        for place, (call, _) in enumerate(results):
            if call.is_tuple:
                self._parts.setdefault(call.variable, []).append((whole, place))
            else:
                self._bind(call.variable, relax.TupleGetItem(whole, place))

    def _bind(self, variable: Any, value: Any) -> None:
        self._bindings.append(relax.VarBinding(variable, self._kernels.builder.normalize(value)))

    def _add_views(self) -> None:
        """Add the views of what is there."""
        later = []
        for view in self._views:
            if not self._needs[view.var] <= self._done:
                later.append(view)
                continue
            parts = self._parts.get(getattr(view.value, "tuple_value", None))
            if parts is not None:
                whole, place = parts[view.value.index]
                self._bind(view.var, relax.TupleGetItem(whole, place))
            else:
                self._bindings.append(view)
            self._done.add(view.var)
        self._views = later


_Joined = tuple[GlobalVar, list[Any], list[tuple[_Call, int]]]
"""A kernel, its operands, and its results: each a call, and which of its results."""


def _beside(kernels: _Kernels, calls: Sequence[_Call]) -> _Joined:
    """What does the calls of light kernels in one launch."""
    key = tuple((call.kernel, len(call.operands)) for call in calls)
    counts = Counter(kernel.name_hint for kernel, _ in key)
    names = [name if n == 1 else f"{name}_{n}_times" for name, n in counts.items()]
    kernel = kernels.made(
        key, "_".join(names), lambda: side_by_side([(kernels[name], n) for name, n in key])
    )
    operands = [operand for call in calls for operand in call.operands]
    return kernel, operands, [(call, k) for call in calls for k in range(len(call.types))]


def _repeated(kernels: _Kernels, calls: Sequence[_Call]) -> _Joined:
    """What does the calls of one kernel in one launch."""
    first, times = calls[0], len(calls)
    columns = list(zip(*(call.operands for call in calls)))
    varies = [not all(operand.same_as(some[0]) for operand in some) for some in columns]
    own = (*varies, *[True] * len(first.types))
    name = f"{first.kernel.name_hint}_{times}_times"
    kernel = kernels.made(
        (first.kernel, own, times), name, lambda: repeated(kernels[first.kernel], own, times)
    )
    operands = [a for some, each in zip(columns, varies) for a in (some if each else some[:1])]
    return kernel, operands, [(call, k) for k in range(len(first.types)) for call in calls]


_CALL_TIR, _RESHAPE = Op.get("relax.call_tir"), Op.get("relax.reshape")


def _runs(bindings: Sequence[Any]) -> Iterator[list[Any]]:
    """The bindings, plain ones that follow one another together."""
    run: list[Any] = []
    for binding in bindings:
        if run and not (_is_plain(binding) and _is_plain(run[0])):
            yield run
            run = []
        run.append(binding)
    if run:
        yield run


def _is_plain(binding: Any) -> bool:
    """True for a call of a kernel, and for a view of values or one of several results."""
    if not isinstance(binding, relax.VarBinding):
        return False
    value = binding.value
    is_view = isinstance(value, relax.Call) and value.op == _RESHAPE
    return _is_call(binding) or is_view or isinstance(value, (relax.Var, relax.TupleGetItem))


def _is_call(binding: Any) -> bool:
    value = binding.value
    return isinstance(value, relax.Call) and value.op == _CALL_TIR and len(value.args) == 2


def _read(binding: relax.VarBinding) -> Iterator[Any]:
    """The variables that a binding reads."""
    value = binding.value
    if isinstance(value, relax.Var):
        yield value
    elif isinstance(value, relax.TupleGetItem):
        yield value.tuple_value
    elif _is_call(binding):
        yield from (field for field in value.args[1].fields if isinstance(field, relax.Var))
    else:
        yield value.args[0]
