"""Lowering for a GPU, where a kernel cannot stop the program.

What a CPU kernel would assert is gathered here instead: the program has one more output, int32
numbers that say which demands were broken, a row each, and whoever runs it turns them into errors.
Until then no kernel reads outside its operands: a broken id is clamped, a broken loop is left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import tvm
import tvm_ffi
from tvm import relax, tirx

from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node, Value
from graphopt.targets.cuda.kernels.demands import PARTS, Holds, check
from graphopt.targets.cuda.kernels.gemm import Math
from graphopt.targets.kernels import bounds
from graphopt.targets.relax.converters import Converter
from graphopt.targets.relax.direct import LAUNCHING
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.lowering import Lowering, Oob, Report, compute, int64
from graphopt.targets.relax.lowering import lowers as lowers_for
from graphopt.targets.relax.operands import describe

ID_ERROR = "graphopt: id out of range: "
GpuConverter = Callable[["CudaLowering", Node], "relax.Expr | Sequence[relax.Expr]"]


def lowers(*ops: str, domain: str = "") -> Callable[[GpuConverter], GpuConverter]:
    """Register the converter of ops for a GPU, before one that is for any target."""

    def register(converter: GpuConverter) -> GpuConverter:
        lowers_for(*ops, domain=domain, target="cuda")(cast(Converter, converter))
        return converter

    return register


@dataclass(frozen=True)
class _Demand:
    """`holds(k, *tensors)` must be true for each k below `count`."""

    holds: Callable[..., Any]
    args: tuple[relax.Expr, ...]
    count: Any
    message: str


class CudaLowering(Lowering):
    """Lowering whose kernels report instead of stopping.

    Attributes:
        device: TVM's target, for which kernels are scheduled.
        math: how layers multiply that say nothing else.
        demands: what the numbers of the last output stand for, in order.
        decisions: nodes for which the host waits for a number, to decide what to launch.
    """

    target: ClassVar[str] = "cuda"
    in_parts: ClassVar[bool] = True

    def __init__(self, device: tvm.target.Target, oob: Oob = "error", math: Math = "Fp32") -> None:
        super().__init__(oob)
        self.math, self.device = math, device
        self.demands: list[_Demand] = []
        self.decisions: list[str] = []
        self._demanded: set[tuple[Value, str]] = set()
        self._loose: Collection[Value] | None = None  # None: this is no body
        self._rows: dict[relax.Expr, relax.Expr] = {}  # loose parameters, and copies of them

    def within(self, loose: Collection[Value]) -> CudaLowering:
        inner = type(self)(self.device, self.oob, self.math)
        inner.sizes, inner.functions = dict(self.sizes), self.functions
        inner.decisions, inner._loose = self.decisions, loose
        return inner

    def parameter(self, value: Value) -> relax.Var:
        found = super().parameter(value)
        if value in (self._loose or ()):
            self._rows[found] = found
        return found

    def demand(
        self, holds: Callable[..., Any], args: Sequence[relax.Expr], count: Any, message: str
    ) -> None:
        """Report `message` if `holds(k, *te_tensors)` is false for some k below `count`."""
        self.demands.append(_Demand(holds, tuple(args), count, message))

    def demand_ids(self, node: Node, ids: Value, size: Dim) -> None:
        """Report ids that an axis of `size` does not have, as far as the policy demands it."""
        self.demand_rows(ids, size, f"{describe(node)} (axis of size {size})")

    def demand_rows(self, ids: Value, size: Dim, what: str) -> None:
        """The same, `what` being what the error says of them."""
        extent = int64(self.dim(size))
        always = self.oob == "zero" or (self.oob == "clamp" and isinstance(size, int) and size > 0)
        if always or not self.first_demand(ids, what):
            return
        count = self.dim(product(ids.tensor.dims))
        self.demand(
            lambda k, i: bounds.is_allowed(i(k).astype("int64"), extent, self.oob),
            [self.reshape(self.expr(ids), [count])],
            count,
            f"{ID_ERROR}{what}",
        )

    def first_demand(self, ids: Value, what: str) -> bool:
        """True unless these ids are demanded to be in the same tables already."""
        first = (ids, what) not in self._demanded
        self._demanded.add((ids, what))
        return first

    def looked_up(
        self, index: Any, size: Any, load: Callable[[Any], Any], otherwise: int = 0
    ) -> Any:
        """`load(row)` for the row that `index` reads, never one outside of [0, size).

        Where there is no such row, or the policy says so, it is what `otherwise` says.
        """
        wide, extent = index.astype("int64"), int64(size)
        inside = wide if self.oob == "zero" else tirx.max(tirx.min(wide, extent - 1), -extent)
        row = tirx.Select(inside < 0, inside + extent, inside)
        value = load(row)
        if self.oob != "zero" and isinstance(size, int) and size > 0:
            return value
        return tirx.if_then_else(
            bounds.is_valid(inside, extent), value, tirx.const(otherwise, value.ty.dtype)
        )

    # ---- emitting

    def is_given(self, expr: relax.Expr) -> bool:
        """True for what comes from outside, whose memory may begin at any element."""
        memory = self.viewed(expr)
        is_parameter = isinstance(memory, relax.Var) and self.bb.lookup_binding(memory) is None
        return is_parameter and self._loose is None  # `kernel` copies what is loose in a body

    def aligned(self, expr: relax.Expr) -> relax.Expr:
        """The same in memory of our own, which may be read 16 bytes at once."""
        if not self.is_given(expr):
            return expr
        return self._copy(expr)

    def _copy(self, expr: relax.Expr) -> relax.Expr:
        return self.te(lambda x: compute(x.shape, lambda *i: x(*i)), expr, name="copy")

    def kernel(
        self,
        function: tirx.PrimFunc,
        args: Sequence[relax.Expr],
        out: Sequence[tuple[Sequence[Any], str]],
    ) -> Sequence[relax.Expr]:
        """Emit a call of a TIR kernel, which is bound to threads."""
        if LAUNCHING not in function.attrs and not _is_bound(function):
            raise self.unsupported("its kernel is one for CPUs")
        return super().kernel(function, [self._in_line(arg) for arg in args], out)

    def _in_line(self, expr: relax.Expr) -> relax.Expr:
        """An operand of a kernel where vectors may begin: rows in a loop are copied, once."""
        memory = self.viewed(expr)
        if memory not in self._rows:
            return expr
        if self._rows[memory] is memory:
            self._rows[memory] = self._copy(memory)
        return self.reshape(self._rows[memory], expr.ty.shape.values)

    def results(self, exprs: Sequence[relax.Expr]) -> list[relax.Expr]:
        """The tensors as `main` returns them, then one that says which demands were broken."""
        found = super().results(exprs)
        return [*found, self._broken()] if self.demands else found

    @contextmanager
    def reporting(self) -> Iterator[list[Report]]:
        reports: list[Report] = []
        outer = self.demands, self._demanded
        self.demands, self._demanded = [], set(self._demanded)
        try:
            yield reports
            if self.demands:
                messages = [demand.message for demand in self.demands]
                reports.append(Report(self._broken(), messages))
        finally:
            self.demands, self._demanded = outer

    def report(self, broken: relax.Expr, messages: Sequence[str]) -> None:
        for row, message in enumerate(messages):
            self.demand(_fine(row), [broken], PARTS, message)

    def _broken(self) -> relax.Expr:
        """int32 [demands, PARTS]: whether each was broken; one launch checks them all."""
        flat = [arg for demand in self.demands for arg in demand.args]

        def body(*buffers: Any) -> None:
            *operands, broken = buffers
            rest = iter(operands)
            conditions = [
                (_condition(demand, [next(rest) for _ in demand.args]), demand.count)
                for demand in self.demands
            ]
            check(conditions, broken, keeps=self._loose is not None)

        return loops(self, body, flat, [([len(self.demands), PARTS], "int32")])[0]


def _fine(row: int) -> Callable[..., Any]:
    """The condition that a part of a row of a report is 0."""
    return lambda part, report: tirx.EQ(report(int64(row), part), 0)


def _condition(demand: _Demand, buffers: list[Any]) -> Holds:
    """What a demand says of element k, its operands being buffers."""

    def read(buffer: Any) -> Callable[..., Any]:
        return lambda *index: buffer[index if len(index) > 1 else index[0]]

    return lambda k: demand.holds(k, *map(read, buffers))


def _is_bound(function: tirx.PrimFunc) -> bool:
    bound: list[Any] = []

    def visit(loop: tirx.For) -> None:
        if loop.kind == tirx.ForKind.THREAD_BINDING:
            bound.append(loop)

    tvm_ffi.structural_walk(function.body, (tirx.For, visit))
    return bool(bound)
