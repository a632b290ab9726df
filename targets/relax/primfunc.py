"""TE computations as PrimFuncs that take the sizes they need as parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tvm import s_tir, te, tirx
from tvm.ir import StringImm

Check = tuple[Any, str]
"""A condition on sizes, and what the run-time error says where it is false."""

OPAQUE = 8  # the op_pattern of a kernel that takes no part in fusion


def int64(size: Any) -> Any:
    """A size as a PrimExpr."""
    return tirx.IntImm("int64", int(size)) if isinstance(size, (int, bool)) else size


def sequence(statements: Sequence[Any]) -> Any:
    """One statement for some; TVM allows no SeqStmt of one."""
    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def compute(shape: Sequence[Any], element: Callable[..., Any], name: str = "compute") -> te.Tensor:
    """`te.compute` whose indices are int64 for static shapes too, as those of symbolic ones are."""
    return te.compute([int64(size) for size in shape], element, name=name)


def from_te(
    inputs: Sequence[te.Tensor],
    outs: Sequence[te.Tensor],
    sizes: Iterable[tirx.Var],
    checks: Sequence[Check],
) -> tuple[tirx.PrimFunc, list[tirx.Var]]:
    """A PrimFunc (inputs, free sizes, outs), and which of `sizes` are the free ones.

    Free are those that the computation uses and that no dim of its inputs is equal to.
    """
    dims = [dim for tensor in inputs for dim in tensor.shape]
    used = _variables([*dims, *(condition for condition, _ in checks), *_computations(outs)])
    bound = {dim for dim in dims if isinstance(dim, tirx.Var)}
    free = [var for var in sizes if var in used and var not in bound]
    kernel = te.create_prim_func([*inputs, *free, *outs], index_dtype_override="int64")
    in_shapes = _variables(dim for tensor in [*inputs, *outs] for dim in tensor.shape)
    # FuseTIR declares a size twice that is an argument of its own and no dim; bfloat16 gets lost
    # between the stages of one kernel.
    narrow = any(str(tensor.dtype) == "bfloat16" for tensor in [*inputs, *outs])
    if checks or narrow or not in_shapes.issuperset(free):
        kernel = kernel.with_attr("op_pattern", OPAQUE)
    kernel = s_tir.renew_defs(_with_checks(kernel, checks))
    return kernel.without_attr("global_symbol"), free


def _variables(exprs: Iterable[Any]) -> set[Any]:
    return {var for expr in exprs for var in tirx.analysis.undefined_vars(expr)}


def _computations(outs: Sequence[te.Tensor]) -> Iterator[Any]:
    """All expressions that computing `outs` evaluates, and the extents of its loops."""
    pending, seen = list(outs), set()
    while pending:
        operation = pending.pop().op
        if operation in seen or not isinstance(operation, te.ComputeOp):
            continue
        seen.add(operation)
        yield from operation.body
        yield from (axis.dom.extent for axis in [*operation.axis, *operation.reduce_axis])
        pending.extend(operation.input_tensors)


def with_root(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """The kernel with its body in a block, which some passes of Relax take for granted."""
    if isinstance(kernel.body, s_tir.SBlockRealize):
        return kernel
    root = s_tir.SBlock([], [], [], "root", kernel.body)
    return kernel.with_body(s_tir.SBlockRealize([], tirx.const(True, "bool"), root))


def _with_checks(kernel: tirx.PrimFunc, checks: Sequence[Check]) -> tirx.PrimFunc:
    """The kernel with assertions before its first loop."""
    if not checks:
        return kernel
    kind = StringImm("RuntimeError")
    asserts = [tirx.AssertStmt(holds, kind, [StringImm(text)]) for holds, text in checks]
    root, block = kernel.body, kernel.body.block
    body = tirx.SeqStmt([*asserts, block.body])
    checked = s_tir.SBlock([], [], [], block.name_hint, body, None, block.alloc_buffers)
    return kernel.with_body(s_tir.SBlockRealize([], root.predicate, checked))
