"""Kernels whose parts several threads compute together, as each gets to them.

Of a kernel marked `WIDE` the iterations of its first loop are parts, and what follows the loop is
one more. A thread claims a part before it computes it, by a flag in memory, so nobody waits for a
thread that comes late or never. `progress`, int64 and all zero at first, holds what threads tell
one another: the number of the layer that may be computed (the largest number if there is none
left), then for each layer how many parts are done and the flag of each part. Which thread computes
a part changes nothing in its bits.

TVM has no atomic operations for CPUs; they come as LLVM functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import s_tir, tirx
from tvm.ir import StringImm

from graphopt.targets.relax.primfunc import int64, sequence, with_root

WIDE = "graphopt.wide"
"""Attribute of kernels that are worth sharing: the bytes of their weights."""

LEAST_BYTES = 2 << 20
"""Weights of all wide kernels below which handing over work takes longer than it saves, with as
many samples as are not split (`graphopt.serving.splitting`)."""

_SPINS = 1 << 15  # looks at memory before others get the core: some 30 us
_LLVM = f"""
define i64 @graphopt_claim(ptr %flag) {{
  %pair = cmpxchg ptr %flag, i64 0, i64 1 acq_rel monotonic
  %won = extractvalue {{ i64, i1 }} %pair, 1
  %result = zext i1 %won to i64
  ret i64 %result
}}
define i64 @graphopt_count(ptr %at) {{
  %before = atomicrmw add ptr %at, i64 1 release
  ret i64 %before
}}
define i64 @graphopt_publish(ptr %at, i64 %value) {{
  store atomic i64 %value, ptr %at release, align 8
  ret i64 %value
}}
define i64 @graphopt_wait(ptr %at, i64 %least) {{
start:
  br label %look
look:
  %spins = phi i64 [ 0, %start ], [ %next, %again ], [ 0, %yield ]
  %now = load atomic i64, ptr %at acquire, align 8
  %enough = icmp sge i64 %now, %least
  br i1 %enough, label %done, label %again
again:
  %next = add i64 %spins, 1
  %tired = icmp eq i64 %next, {_SPINS}
  br i1 %tired, label %yield, label %look
yield:
  %ignored = call i32 @sched_yield()
  br label %look
done:
  ret i64 %now
}}
declare i32 @sched_yield()
"""


class Sharing:
    """How the calls of a program are shared out among threads.

    Attributes:
        kernels: by their names, those that compute what they get to of a wide kernel.
        slots: elements of `progress`; 0 if sharing would not pay.
        weights: bytes of weights that the wide kernels read.
    """

    def __init__(self, kernels: Mapping[str, tirx.PrimFunc], calls: Sequence[str]) -> None:
        self._parts = {name: _parts(kernel) for name, kernel in kernels.items()}
        wide = [symbol for symbol in calls if self._parts[symbol]]
        self.weights = sum(int(kernels[symbol].attrs[WIDE]) for symbol in wide)
        self.slots = 1 + sum(1 + self._parts[symbol] for symbol in wide)
        self.kernels: dict[str, tirx.PrimFunc] = {}
        if self.weights < LEAST_BYTES:
            self.slots = 0
            return
        self.progress, self.helps = self._buffer(), tirx.Var("helps", "int64")
        for symbol in dict.fromkeys(wide):
            name = f"{symbol}_shared"
            self.kernels[name] = _shared(kernels[symbol], self._buffer())
        self._layers, self._first = 0, 1

    def _buffer(self) -> Any:
        shape = (int64(self.slots),)
        return tirx.decl_buffer(shape, "int64", "progress", data_alignment=8)

    def is_shared(self, symbol: str) -> bool:
        return self._parts[symbol] > 0

    def next_layer(self, symbol: str) -> tuple[str, list[Any]]:
        """The kernel to call in place of `symbol`, and what it takes after the operands."""
        return f"{symbol}_shared", [self.progress, int64(self._first)]

    def together(self, symbol: str, compute: Sequence[Any]) -> list[Any]:
        """The statements of a call that `next_layer` prepared; all threads take part."""
        self._layers += 1
        layer, first = self._layers, self._first
        self._first += 1 + self._parts[symbol]
        waited = _call("wait", self.progress, 0, layer)
        return [
            self.alone([tirx.Evaluate(_call("publish", self.progress, 0, layer))]),
            tirx.IfThenElse(waited < tirx.max_value("int64"), sequence(compute), None),
            self.alone([tirx.Evaluate(_call("wait", self.progress, first, self._parts[symbol]))]),
        ]

    def alone(self, statements: Sequence[Any]) -> Any:
        """Statements for the thread that was asked."""
        return tirx.IfThenElse(tirx.EQ(self.helps, int64(0)), sequence(statements), None)


def with_atomics(body: Sequence[Any]) -> tirx.Stmt:
    """Statements in which the functions are known that sharing calls."""
    return tirx.AttrStmt(int64(0), "pragma_import_llvm", StringImm(_LLVM), sequence(body))


def _call(name: str, progress: Any, place: Any, *more: int) -> Any:
    at = tirx.address_of(progress[int64(place)])
    return tirx.call_extern("int64", f"graphopt_{name}", at, *map(int64, more))


def _parts(kernel: tirx.PrimFunc) -> int:
    """How many parts a kernel has; 0 if it is not to be shared."""
    if not kernel.attrs.get(WIDE, 0):
        return 0
    loop, *rest = _statements(kernel)
    extent = loop.extent if isinstance(loop, tirx.For) else None
    return int(extent) + bool(rest) if isinstance(extent, tirx.IntImm) else 0


def _shared(kernel: tirx.PrimFunc, progress: Any) -> tirx.PrimFunc:
    """A kernel that also takes `progress`, and where its layer begins in there."""
    loop, *rest = _statements(kernel)
    first = tirx.Var("first", "int64")

    def claimed(part: Any, body: list[Any]) -> tirx.Stmt:
        own = tirx.EQ(_call("claim", progress, first + 1 + part), int64(1))
        done = tirx.Evaluate(_call("count", progress, first))
        return tirx.IfThenElse(own, tirx.SeqStmt([*body, done]), None)

    part = tirx.Cast("int64", loop.loop_var)
    body = [tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, claimed(part, [loop.body]))]
    if rest:
        body.append(claimed(int64(int(loop.extent)), rest))
    params = [*kernel.params, progress, first]
    function = tirx.PrimFunc(params, sequence(body), kernel.ret_type, kernel.attrs)
    return s_tir.renew_defs(with_root(function))


def _statements(kernel: tirx.PrimFunc) -> list[Any]:
    body = kernel.body
    if isinstance(body, s_tir.SBlockRealize):
        body = body.block.body
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
