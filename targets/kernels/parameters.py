"""Kernels whose optional inputs a caller leaves out."""

from tvm.s_tir.analysis import verify_well_formed
from tvm.tirx import PrimFunc


def without_parameters(kernel: PrimFunc, *names: str) -> PrimFunc:
    """`kernel` without the named buffers, which its body must not use; the rest keep their order.

    TVMScript fixes the parameter list of a function, while its body may skip an input by a test of
    a Python constant.  A body that does use a dropped buffer raises ValueError.
    """
    missing = set(names) - {parameter.name for parameter in kernel.params}
    if missing:
        raise ValueError(f"no parameters called {', '.join(sorted(missing))}")
    kept = [parameter for parameter in kernel.params if parameter.name not in names]
    trimmed = PrimFunc(kept, kernel.body, kernel.ret_type, kernel.attrs)
    verify_well_formed(trimmed)
    return trimmed
