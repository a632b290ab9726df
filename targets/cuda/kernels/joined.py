"""Several kernels as one: blocks of one launch, the first of which do what one does, and so on.

What kernels compute is left as it is; only what they take for the number of their block changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Call, Op, PointerType, PrimType, StringImm

from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.primfunc import int64, sequence, with_root

THREADS = 256  # of a block, in nearly all kernels that are no products
_SHARED = 2048  # bytes
_HELD = 32  # elements that a thread may keep in one buffer


@dataclass(frozen=True)
class Part:
    """A kernel that is one launch: `body` for each block and each of `THREADS` threads.

    Attributes:
        operands, results: its parameters.
        blocks: the loops of blocks, those of a fixed number of them first.
        thread: the number of a thread in its block.
        rooms: what the kernel allocates around its loops.
    """

    operands: list[Any]
    results: list[Any]
    blocks: list[tirx.For]
    thread: Any
    body: Any
    rooms: list[Any]

    @property
    def count(self) -> Any:
        """How many blocks there are."""
        count = int64(1)
        for loop in self.blocks:
            count = count * int64(loop.extent)
        return count


def is_light(kernel: tirx.PrimFunc) -> bool:
    """True for a kernel of one launch, of `THREADS` threads a block that keep little."""
    found = _loops(kernel)
    if found is None or not _is_fixed(found[-1].extent, THREADS):
        return False
    tags = [_tag(loop) for loop in found]
    shared, fits = 0, True
    for buffer in _rooms(kernel):
        size = [int(n) for n in buffer.ty.shape if isinstance(n, tirx.IntImm)]
        elements = 1
        for n in size:
            elements *= n
        if len(size) < len(buffer.ty.shape) or buffer.scope() not in ("local", "shared"):
            return False
        if buffer.scope() == "shared":
            shared += elements * element_bytes(str(buffer.dtype))
        else:
            fits &= elements <= _HELD
    return fits and shared <= _SHARED and tags[-1] == "threadIdx.x" and not _binds(found[-1].body)


def is_repeatable(kernel: tirx.PrimFunc) -> bool:
    """True for a kernel whose launches share no memory but that of its parameters."""
    rooms = all(buffer.scope() != "global" for buffer in _rooms(kernel))
    tags = {_tag(loop) for loop in _binding_loops(kernel.body)}
    return rooms and "blockIdx.x" in tags and "blockIdx.z" not in tags


def side_by_side(kernels: Sequence[tuple[tirx.PrimFunc, int]]) -> tirx.PrimFunc:
    """One launch that does what some light kernels do, none of which reads what another writes.

    Args:
        kernels: each with how many of its parameters are operands; the others are results.

    Returns:
        a kernel of all their operands, then all their results.
    """
    parts = [_part(kernel, operands) for kernel, operands in kernels]
    thread, block = (tirx.Var(name, "int64") for name in ("thread", "block"))
    left = tirx.decl_buffer((1,), "int64", "left", scope="local")
    rest: Any = None
    for part in reversed(parts):
        if rest is not None:
            rest = sequence([tirx.BufferStore(left, left[0] - part.count, [0]), rest])
        rest = tirx.IfThenElse(left[0] < part.count, _placed(part, left[0], thread), rest)
    start = [tirx.AllocBuffer(left), tirx.BufferStore(left, block, [0])]
    body = _bound(thread, int64(THREADS), "threadIdx.x", sequence([*start, rest]))
    total = parts[0].count
    for part in parts[1:]:
        total = total + part.count
    operands = chain.from_iterable(part.operands for part in parts)
    results = chain.from_iterable(part.results for part in parts)
    return _kernel([*operands, *results], _bound(block, total, "blockIdx.x", body), kernels[0][0])


def repeated(kernel: tirx.PrimFunc, varies: Sequence[bool], times: int) -> tirx.PrimFunc:
    """A kernel that does what `kernel` does for several sets of parameters of equal sizes.

    Each of its launches has `times` as many blocks: blockIdx.z says which set one serves.

    Args:
        varies: for each parameter whether each set has its own. Results do.

    Returns:
        a kernel that has `times` parameters in the place of one that varies.
    """
    kernel = s_tir.renew_defs(kernel)
    sets = [
        [_like(given, f"{given.name}_{k}") for k in range(times)] if own else [given]
        for given, own in zip(kernel.params, varies, strict=True)
    ]
    several = [(given, some) for given, some in zip(kernel.params, sets) if len(some) > 1]

    def chosen(loop: tirx.For) -> tirx.For:
        if loop.kind != tirx.ForKind.THREAD_BINDING or _tag(loop) != "blockIdx.x":
            return loop
        which = tirx.Var("which", "int32")
        nest, body = _nest(loop.body)
        pairs = ((given, _one_of(which, some)) for given, some in several)
        body = sequence([*(tirx.DeclBuffer(given, data=place) for given, place in pairs), body])
        for inner in (*reversed(nest), loop):
            sizes = inner.loop_var, inner.min, inner.extent, inner.kind
            body = tirx.For(*sizes, body, inner.thread_binding, inner.annotations)
        return _bound(which, tirx.const(times, "int32"), "blockIdx.z", body)

    body = tvm_ffi.structural_map(kernel.body, (tirx.For, chosen))
    return _kernel(list(chain.from_iterable(sets)), body, kernel)


def _one_of(which: Any, buffers: Sequence[Any]) -> Any:
    """The address of one of some buffers."""
    firsts = [tirx.address_of(some[(int64(0),) * len(some.ty.shape)]) for some in buffers]
    name, pointer = StringImm("graphopt::one_of"), PointerType(PrimType(str(buffers[0].ty.dtype)))
    return Call(Op.get("tirx.call_extern"), [name, which, *firsts], ret_ty=pointer)


def _part(kernel: tirx.PrimFunc, operands: int) -> Part:
    kernel = s_tir.renew_defs(kernel)
    loops = _loops(kernel)
    assert loops is not None
    *blocks, threads = loops
    blocks.sort(key=lambda loop: not isinstance(loop.extent, tirx.IntImm))
    given, results = list(kernel.params[:operands]), list(kernel.params[operands:])
    rooms = list(kernel.body.block.alloc_buffers)
    return Part(given, results, blocks, threads.loop_var, threads.body, rooms)


def _placed(part: Part, number: Any, thread: Any) -> Any:
    """What a thread of block `number` of a part does."""
    binds, below = [], int64(1)
    for loop in part.blocks:
        place = number if loop is part.blocks[0] else tirx.truncdiv(number, below)
        if loop is not part.blocks[-1]:
            place = tirx.truncmod(place, int64(loop.extent))
        binds.append(tirx.Bind(loop.loop_var, place.astype(str(loop.loop_var.ty.dtype))))
        below = below * int64(loop.extent)
    own = thread.astype(str(part.thread.ty.dtype))
    body = tvm_ffi.structural_map(
        part.body, (tirx.Var, lambda var: own if var.same_as(part.thread) else var)
    )
    block = s_tir.SBlock([], [], [], "part", sequence([*binds, body]), None, part.rooms)
    return s_tir.SBlockRealize([], tirx.const(True, "bool"), block)


# ------------------------------------------------------------------ kernels taken apart


def _loops(kernel: tirx.PrimFunc) -> list[tirx.For] | None:
    """The loops of blocks and threads of a kernel that is nothing but these and what is in them."""
    if not isinstance(kernel.body, s_tir.SBlockRealize) or kernel.body.block.iter_vars:
        return None
    loops, _ = _nest(kernel.body.block.body)
    tags = [_tag(loop) for loop in loops]
    if not tags or "threadIdx.x" not in tags or len(set(tags)) != len(tags):
        return None
    ordered = sorted(loops, key=lambda loop: _tag(loop).startswith("thread"))
    return ordered if sum(tag.startswith("thread") for tag in tags) == 1 else None


def _nest(body: Any) -> tuple[list[tirx.For], Any]:
    """The loops of blocks and threads that `body` begins with, and what is in them."""
    loops = []
    while isinstance(body, tirx.For) and body.kind == tirx.ForKind.THREAD_BINDING:
        loops.append(body)
        body = body.body
    return loops, body


def _binding_loops(body: Any) -> list[tirx.For]:
    found: list[tirx.For] = []

    def visit(loop: tirx.For) -> None:
        if loop.kind == tirx.ForKind.THREAD_BINDING:
            found.append(loop)

    tvm_ffi.structural_walk(body, (tirx.For, visit))
    return found


def _binds(body: Any) -> bool:
    return bool(_binding_loops(body))


def _rooms(kernel: tirx.PrimFunc) -> list[Any]:
    """The buffers that a kernel allocates."""
    found: list[Any] = []
    visits = [
        (tirx.AllocBuffer, lambda made: found.append(made.buffer)),
        (s_tir.SBlock, lambda block: found.extend(block.alloc_buffers)),
    ]
    tvm_ffi.structural_walk(kernel.body, visits)
    return found


def _tag(loop: tirx.For) -> str:
    return str(loop.thread_binding.thread_tag)


def _is_fixed(extent: Any, number: int) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent) == number


# ---------------------------------------------------------------------- and put together


def _like(given: Any, name: str) -> Any:
    type_ = given.ty
    return tirx.decl_buffer(
        type_.shape, str(type_.dtype), name, data_alignment=type_.data_alignment, layout=None
    )


def _bound(var: Any, extent: Any, tag: str, body: Any) -> tirx.For:
    dtype, kind = str(var.ty.dtype), tirx.ForKind.THREAD_BINDING
    binding = tirx.IterVar(None, tirx.Var(tag, dtype), tirx.IterVar.ThreadIndex, tag)
    return tirx.For(var, tirx.const(0, dtype), extent, kind, body, binding)


def _kernel(params: list[Any], body: Any, like: tirx.PrimFunc) -> tirx.PrimFunc:
    made = tirx.PrimFunc(params, body, like.ret_type, like.attrs)
    return s_tir.renew_defs(with_root(made))
