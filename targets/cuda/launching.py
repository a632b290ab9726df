"""Loops and branches on a GPU: functions of the host that launch the kernels of their bodies.

They take the place of a kernel in the program, and nothing that they launch is waited for. Only a
number that data decides, as a condition, is copied to the host, which has to wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import tvm
from tvm import relax, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.joining import join
from graphopt.targets.cuda.kernels.demands import PARTS
from graphopt.targets.cuda.schedule import schedule
from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.bodies import Caller
from graphopt.targets.relax.direct import CUDA, LAUNCHING, DirectKernel
from graphopt.targets.relax.lowering import Lowering, int64
from graphopt.targets.relax.operands import describe
from graphopt.targets.relax.straight import buffer_of, require

if TYPE_CHECKING:
    from graphopt.targets.cuda.lowering import CudaLowering

_ANY_DIRECTION = 4  # copies: the driver sees which side the host is


class Launcher(Caller):
    """A function of the host that launches kernels."""

    attributes: ClassVar[dict[str, Any]] = {LAUNCHING: True}

    def __init__(self, lower: Lowering) -> None:
        super().__init__(lower)
        self._reports: list[tuple[Any, list[str]]] = []
        self._decides = False

    @property
    def _lowering(self) -> CudaLowering:
        return cast("CudaLowering", self.lower)

    def number(self, dtype: str) -> tuple[Any, list[Any]]:
        buffer = buffer_of((int64(1),), dtype, "number")
        return buffer, [tirx.AllocBuffer(buffer)]

    def value(self, expr: relax.Expr) -> tuple[Any, list[Any]]:
        buffer, room = self.number(str(expr.ty.dtype))
        source = tirx.address_of(self.given(self.lower.reshape(expr, [])))
        return buffer[0], [*room, *self._fetched(buffer, source)]

    def shown(self, number: Any) -> tuple[Any, list[Any]]:
        place = self.scratch(self.room(element_bytes(str(number.ty.dtype))))
        return place, self._stored(number, place)

    def told(self, number: Any) -> tuple[Any, list[Any]]:
        place = self.scratch(self.room(element_bytes(str(number.ty.dtype))))
        return place, self._fetched(number, place)

    def noted(self, number: Any) -> list[Any]:
        output = self.output([1], str(number.ty.dtype))
        return self._stored(number, tirx.address_of(output))

    def copied(self, to: Any, source: Any, size: Any) -> Any:
        return _done("cudaMemcpyAsync", to, source, int64(size), _ANY_DIRECTION, _stream())

    def scheduled(self, module: tvm.IRModule) -> tvm.IRModule:
        joined, _ = join(schedule(module, self._lowering.device))
        return joined

    def direct(self, name: str, kernel: tirx.PrimFunc) -> DirectKernel:
        return DirectKernel(name, kernel)

    def reported(self, inner: Lowering) -> Any:
        messages = [demand.message for demand in cast("CudaLowering", inner).demands]
        buffer = buffer_of((int64(len(messages)), int64(PARTS)), "int32", "broken")
        self._reports.append((buffer, messages))
        return tirx.address_of(buffer)

    def emit(self, statements: Sequence[Any]) -> list[relax.Expr]:
        """As `Caller.emit`; what its bodies report becomes demands of the program around."""
        count = len(self.outs)
        self.outs += [buffer for buffer, _ in self._reports]
        clear = [
            _done("cudaMemsetAsync", address, 0, int64(4 * PARTS * len(messages)), _stream())
            for address, messages in ((tirx.address_of(b), m) for b, m in self._reports)
        ]
        results = super().emit([*clear, *statements])
        for broken, (_, messages) in zip(results[count:], self._reports):
            self.lower.report(broken, messages)
        if self._decides and self.lower.node is not None:
            self._lowering.decisions.append(describe(self.lower.node))
        return results[:count]

    def _fetched(self, number: Any, place: Any) -> list[Any]:
        """The statements that bring a number from the device, and wait for it."""
        self._decides = True
        size = element_bytes(str(number.ty.dtype))
        return [
            self.copied(tirx.address_of(number), place, size),
            _done("cudaStreamSynchronize", _stream()),
        ]

    def _stored(self, number: Any, place: Any) -> list[Any]:
        """The statements that launch a kernel which writes a number."""
        dtype = str(number.ty.dtype)
        kernel = DirectKernel(f"number{len(self.lower.functions)}", _storing(dtype))
        self.lower.functions[kernel.name] = kernel.function
        return kernel.called([number[0], place], [None, [1]], lambda size: size)


def _storing(dtype: str) -> tirx.PrimFunc:
    """The kernel that writes a number which it is given."""
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        number = T.arg("number", tirx.Var("number", dtype))
        out = T.arg("out", T.buffer((int64(1),), dtype))
        with T.thread_binding(int64(0), int64(1), thread="threadIdx.x"):
            T.buffer_store(out, number, [int64(0)])
    return s_tir.renew_defs(builder.get())


def _stream() -> Any:
    """The stream that kernels are launched on."""
    return tirx.call_extern("handle", "TVMFFIEnvGetStream", CUDA, 0)


def _done(function: str, *arguments: Any) -> Any:
    """The statement that calls CUDA's runtime, which may fail."""
    code = tirx.call_extern("int32", function, *arguments)
    return require(tirx.EQ(code, 0), f"{function} failed", "InternalError")
