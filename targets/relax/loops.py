"""Kernels written as loops, for what TE cannot say: assertions, scatters, several results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.relax.lowering import OPAQUE, Lowering, int64


def loops(
    lower: Lowering,
    body: Callable[..., None],
    args: Sequence[relax.Expr],
    outs: Sequence[tuple[Sequence[Any], str]],
) -> list[relax.Expr]:
    """Emit a kernel whose statements `body(*input_buffers, *output_buffers)` builds.

    `body` may use sizes from `Lowering.dim` and `Lowering.shape`.

    Args:
        outs: shape and dtype of each output.
    """
    shapes = [[int64(d) for d in arg.ty.shape.values] for arg in args]
    shapes += [[int64(d) for d in shape] for shape, _ in outs]
    dtypes = [str(arg.ty.dtype) for arg in args] + [dtype for _, dtype in outs]
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
        buffers = [
            T.arg(f"arg{k}", T.buffer(tuple(shape), dtype))
            for k, (shape, dtype) in enumerate(zip(shapes, dtypes))
        ]
        body(*buffers)
    kernel = builder.get()
    inputs, results = kernel.params[: len(args)], kernel.params[len(args) :]
    free = free_sizes(kernel, shapes)
    kernel = tirx.PrimFunc([*inputs, *free, *results], kernel.body, kernel.ret_type, kernel.attrs)
    return list(lower.kernel(s_tir.renew_defs(kernel), [*args, *free], outs))


def free_sizes(kernel: tirx.PrimFunc, shapes: Sequence[Sequence[Any]]) -> list[tirx.Var]:
    """The sizes that a kernel uses and that no dim of a buffer is equal to."""
    bound = {dim for shape in shapes for dim in shape if isinstance(dim, tirx.Var)}
    used = list(tirx.analysis.undefined_vars(kernel.body, list(kernel.params)))
    used += [v for shape in shapes for dim in shape for v in tirx.analysis.undefined_vars(dim)]
    return [var for var in dict.fromkeys(used) if var not in bound]


def store(buffer: Any, index: Sequence[Any], value: Any) -> None:
    """`buffer[index] = value`"""
    T.buffer_store(buffer, value, list(index))


def require(condition: Any, message: str) -> None:
    """Stop the program with `message` (RuntimeError in Python) unless `condition` holds."""
    with T.Assert(condition, message):
        pass


def row_major(index: Sequence[Any], shape: Sequence[Any]) -> Any:
    """The position of `index` among the elements of `shape`."""
    flat: Any = int64(0)
    for i, size in zip(index, shape):
        flat = flat * int64(size) + i
    return flat
