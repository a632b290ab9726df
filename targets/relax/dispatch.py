"""Kernels with a body of their own for some sizes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tvm import s_tir, tirx

from graphopt.targets.relax.direct import at
from graphopt.targets.relax.primfunc import int64, with_root


def with_bodies(
    kernel: tirx.PrimFunc, size: Any, bodies: Mapping[int, tirx.PrimFunc]
) -> tirx.PrimFunc:
    """`kernel`, but where its free size `size` is a key of `bodies`, that kernel's body."""
    if not bodies:
        return kernel
    # The general one comes first, as it was alone: room on the stack goes to who asks first.
    others = [tirx.NE(size, int64(number)) for number in bodies]
    chain = None
    for number, fixed in sorted(bodies.items()):
        chain = tirx.IfThenElse(tirx.EQ(size, int64(number)), _at_operands(fixed, kernel), chain)
    body = tirx.IfThenElse(functools.reduce(tirx.And, others), kernel.body, chain)
    return with_root(tirx.PrimFunc(kernel.params, body, kernel.ret_type, kernel.attrs))


def _at_operands(fixed: tirx.PrimFunc, kernel: tirx.PrimFunc) -> tirx.Stmt:
    """The body of `fixed` on the operands of `kernel`."""
    own = s_tir.renew_defs(fixed)
    pairs = zip(own.params, kernel.params, strict=True)
    declared = [at(buffer, tirx.address_of(operand)) for buffer, operand in pairs]
    return tirx.SeqStmt([*declared, own.body])
