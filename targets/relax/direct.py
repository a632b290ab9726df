"""Kernels that are called with addresses and sizes alone, as functions of one library are.

By default TVM makes each kernel one that anybody may call: its caller describes every operand in
memory, and the kernel checks each description before it computes. That is some 150 lines of LLVM
code an operand; a lookup in 400 tables takes minutes to compile. Here a call is settled while
compiling (`reader.py` knows every shape), so nothing is left to be described or checked, except for
sizes that only the inputs can make equal.

A kernel gives 0, or another number once it has said what is wrong (`tirx.AssertStmt`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import GlobalVar, PointerType, PrimType, StringImm
from tvm.ir.expr import Call as Called
from tvm.sym import Analyzer

from graphopt.targets.relax.primfunc import int64, sequence, with_root
from graphopt.targets.relax.scratch import ON_STACK, on_stack

DIRECT = "graphopt_direct"
"""`tvm.compile(…, tir_pipeline=DIRECT)`: `ON_STACK`, for modules with kernels of `DirectKernel`."""

DIRECT_LAUNCH = "graphopt_direct_launch"
"""TVM's default pipeline for modules with kernels of `DirectKernel` for the GPU that is the current
target."""

LAUNCHING = "graphopt.launching"
"""Of kernels for a GPU that run on the host, and launch others."""

_KERNEL = "graphopt.direct"
_CPU, CUDA = 1, 2  # DLPack's numbers
_INT32 = PrimType("int32")


class DirectKernel:
    """A kernel as a function of addresses.

    Attributes:
        name: what calls it.
        function: takes an address for each buffer of the kernel, its numbers as they are, then the
            sizes that only shapes of the buffers have named.
    """

    def __init__(self, name: str, kernel: tirx.PrimFunc) -> None:
        self.name = GlobalVar(name)
        self._given = list(kernel.params)
        params, declarations = [], []
        for given in self._given:
            if _is_buffer(given):
                pointer = tirx.Var(given.name, _pointer(given.ty.dtype))
                declarations.append(at(given, pointer))
                given = pointer
            params.append(given)
        dims = [dim for given in self._given if _is_buffer(given) for dim in given.ty.shape]
        found = dict.fromkeys(dim for dim in dims if isinstance(dim, tirx.Var))
        self._sizes = [size for size in found if size not in self._given]
        body = sequence([*declarations, kernel.body])
        function = tirx.PrimFunc([*params, *self._sizes], body, kernel.ret_type, kernel.attrs)
        named = with_root(function).without_attr("global_symbol").with_attr(_KERNEL, name)
        self.function = (
            named.with_attr("tirx.is_host_func", True) if LAUNCHING in named.attrs else named
        )

    def called(
        self,
        operands: Sequence[Any],
        shapes: Sequence[Sequence[Any] | None],
        scalar: Callable[[Any], Any],
    ) -> list[Any]:
        """The statements that call it.

        Args:
            operands: addresses and numbers.
            shapes: for each operand that is an address, the dims of what lies there.
            scalar: what to write for a size, which may take some computation.
        """
        known = {
            given: operand for given, operand in zip(self._given, operands) if not _is_buffer(given)
        }
        pairs = [
            pair
            for given, shape in zip(self._given, shapes)
            if shape is not None
            for pair in zip(given.ty.shape, shape, strict=True)
        ]
        for own, dim in pairs:
            if isinstance(own, tirx.Var):
                known.setdefault(own, int64(dim))
        args = [
            tirx.reinterpret(_pointer(given.ty.dtype), operand) if _is_buffer(given) else operand
            for given, operand in zip(self._given, operands, strict=True)
        ]
        args += [scalar(known[size]) for size in self._sizes]
        result = Called(self.name, args, ret_ty=_INT32)
        failed = tirx.Evaluate(Called("tirx.tvm_throw_last_error", [], ret_ty=_INT32))
        checks = _unequal(pairs, known, self.name.name_hint)
        return [*checks, tirx.IfThenElse(result != tirx.const(0, "int32"), failed, None)]


def _unequal(pairs: Sequence[tuple[Any, Any]], known: Any, name: str) -> Iterator[Any]:
    """Checks of the dims that are not known to be what a kernel takes them for."""
    analyzer = Analyzer()
    for own, dim in pairs:
        if isinstance(own, tirx.IntImm):
            own = int64(int(own))  # which may have been written as an int32
        taken = tvm_ffi.structural_map(own, (tirx.Var, lambda size: known.get(size, size)))
        given = int64(dim)
        if tvm_ffi.structural_equal(taken, given) or analyzer.can_prove_equal(taken, given):
            continue
        message = StringImm(f"graphopt: sizes that {name} takes to be equal are not")
        yield tirx.AssertStmt(tirx.EQ(taken, given), StringImm("RuntimeError"), [message])


def at(buffer: Any, address: Any) -> tirx.DeclBuffer:
    """The statement that lets `buffer` lie at an address."""
    return tirx.DeclBuffer(buffer, data=tirx.reinterpret(_pointer(buffer.ty.dtype), address))


def _pointer(dtype: Any) -> PointerType:
    return PointerType(PrimType(str(dtype)))


def _is_buffer(parameter: Any) -> bool:
    return isinstance(parameter.ty, tirx.BufferType)


def _returning(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A lowered kernel that returns a number.

    TVM makes a function of a compute scope that LLVM does not inline, and whose pointers it takes
    to be of different memory; code after it is not reached once an assertion failed.
    """
    name = StringImm(f"{function.attrs[_KERNEL]}_compute_")
    scope = tirx.AttrStmt(int64(0), "compute_scope", name, function.body)
    return _then_zero(function, on_device(scope, _CPU))


def on_device(body: Any, device: int) -> Any:
    """A statement that says where what it allocates is: the first device of a kind."""
    for key, number in (("device_id", 0), ("device_type", device)):
        body = tirx.AttrStmt(StringImm("default"), key, number, body)
    return body


def _then_zero(function: tirx.PrimFunc, body: Any) -> tirx.PrimFunc:
    """A function that does `body` in the place of its own, and gives 0."""
    whole = tirx.SeqStmt([body, tirx.stmt.Return(tirx.const(0, "int32"))])
    return tirx.PrimFunc(function.params, whole, _INT32, function.attrs)


def _is_kernel(function: tirx.PrimFunc) -> bool:
    return _KERNEL in function.attrs


@tvm.transform.module_pass(opt_level=0, name="graphopt.returning")
def _all_returning(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    functions = {
        name: _returning(function) if _is_kernel(function) else function
        for name, function in module.functions.items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)


def _pipeline() -> tuple[Any, Any, Any]:
    lower, *finalize = tirx.get_tir_pipeline(ON_STACK)
    return tvm.transform.Sequential([lower, _all_returning]), *finalize


def _launching_pipeline() -> tuple[Any, Any, Any]:
    """Lowers kernels by themselves: calls of functions for a GPU would become launches."""
    lower, *finalize = tirx.get_tir_pipeline("default")

    @tvm.transform.module_pass(opt_level=0, name="graphopt.launching")
    def whole(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        target = tvm.target.Target.current(allow_none=False)
        kernels = {
            name: function.with_attr("target", target)
            for name, function in module.functions.items()
            if _is_kernel(function) and LAUNCHING not in function.attrs
        }
        split = lower(tvm.IRModule(kernels))
        host = lower(tvm.IRModule({**module.functions, **_on_host(kernels, _nothing)}))
        launchers = {
            name: _then_zero(function, on_device(on_stack(function).body, _CPU))
            for name, function in host.functions.items()
            if LAUNCHING in function.attrs and _is_kernel(function)
        }
        launched = {**split.functions, **_on_host(split.functions, _launches)}
        return tvm.IRModule({**host.functions, **launchers, **launched})

    return whole, *finalize


def _on_host(
    functions: Mapping[Any, tirx.PrimFunc], doing: Callable[[tirx.PrimFunc], Any]
) -> dict[Any, tirx.PrimFunc]:
    """The kernels among some functions as functions of the host that do what `doing` says."""
    found = {}
    for name, function in functions.items():
        if _is_kernel(function):
            target = function.attrs["target"].host
            named = function.with_attr("target", target).without_attr("tirx.is_entry_func")
            found[name] = _then_zero(named, doing(function))
    return found


def _nothing(function: tirx.PrimFunc) -> Any:
    return tirx.Evaluate(int64(0))


def _launches(function: tirx.PrimFunc) -> Any:
    """What the kernel does, and the memory that several launches share on the device."""
    return on_device(function.body, CUDA)


tirx.register_tir_pipeline(DIRECT, _pipeline)
tirx.register_tir_pipeline(DIRECT_LAUNCH, _launching_pipeline)
