"""Where kernels for a CPU keep their scratch: on the stack.

TVM asks the runtime for room for a buffer of scope "local", and for one of 1 KiB or more of any
scope, each time that a kernel gets to it; that takes longer than a small layer of one sample, and
sums that go there are written to memory after each block although nobody reads them. On the stack
LLVM keeps them in registers. So kernels say `T.alloc_buffer` of whatever scope, and the pipeline
`ON_STACK` decides for all of them.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

ON_STACK = "graphopt_on_stack"
"""`tvm.compile(…, tir_pipeline=ON_STACK)`: TVM's default, with scratch on the stack."""

LARGEST, MOST = 16 << 10, 32 << 10
"""Bytes of a buffer and of all of a kernel; threads may have small stacks."""


def on_stack(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A lowered kernel whose buffers of known size are on the stack, as far as they fit there."""
    left = MOST

    def place(statement: tirx.AllocBuffer) -> tirx.Stmt:
        nonlocal left
        size = _bytes(statement.buffer)
        if not size or size > min(LARGEST, left):
            return statement
        left -= size
        if _VOLATILE in statement.annotations:
            return tirx.AllocBuffer(statement.buffer, {**statement.annotations, **_LEFT_TO_LLVM})
        return _aligned(statement.buffer, size)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, place)))


_LINE, _VECTOR = 64, "float32x16"
"""A cache line, as long as the widest vector; one across two takes twice as long."""

_VOLATILE = "tirx.volatile"  # Of what LLVM may not make vectors of.

# What TVM's LowerTVMBuiltin takes for a request to leave an allocation as it is.
_LEFT_TO_LLVM = {"disable_lower_builtin": tirx.const(True, "bool")}


def _aligned(buffer: Any, size: int) -> tirx.Stmt:
    """Memory for a buffer on the stack. TVM aligns it at 16 bytes, unless it has whole vectors."""
    if size < _LINE:
        return tirx.AllocBuffer(buffer, _LEFT_TO_LLVM)
    lines = tirx.decl_buffer((-(-size // _LINE),), _VECTOR, buffer.name, scope=buffer.scope())
    allocated = tirx.AllocBuffer(lines, _LEFT_TO_LLVM)
    return tirx.SeqStmt([allocated, tirx.DeclBuffer(buffer, data=lines.data)])


def _bytes(buffer: Any) -> int | None:
    """The size of a buffer; None if it is known at run time only."""
    if not all(isinstance(size, tirx.IntImm) for size in buffer.shape):
        return None
    dtype = tvm.DataType(str(buffer.dtype))
    return math.prod(map(int, buffer.shape)) * dtype.lanes * ((dtype.bits + 7) // 8)


@tvm.transform.module_pass(opt_level=0, name="graphopt.on_stack")
def _all_on_stack(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    functions = {
        name: on_stack(function) if isinstance(function, tirx.PrimFunc) else function
        for name, function in module.functions.items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)


def _pipeline() -> tuple[Any, Any, Any]:
    lower, *finalize = tirx.get_tir_pipeline("default")
    return tvm.transform.Sequential([lower, _all_on_stack]), *finalize


tirx.register_tir_pipeline(ON_STACK, _pipeline)
