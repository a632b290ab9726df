"""Relax module → library whose GPU code is machine code already."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from graphopt.ir.graph import Node
from graphopt.targets.cuda import nvcc, packing
from graphopt.targets.cuda.joining import join
from graphopt.targets.cuda.kernels import elementary, gemm
from graphopt.targets.cuda.schedule import COMPACT, schedule
from graphopt.targets.cuda.straight import straighten
from graphopt.targets.relax.attribution import Emitted
from graphopt.targets.relax.build import (
    Functions,
    calls,
    compiling,
    export,
    fuse,
    kernels,
    to_virtual_machine,
)
from graphopt.targets.relax.direct import DIRECT_LAUNCH


@dataclass(frozen=True)
class Built:
    """What a library was made of.

    Attributes:
        report: `kernels` and `calls`, as of the CPU; `nvcc_seconds`; and `gpu_kernels`, what each
            of them takes of a GPU.
        embedded: for a straight program, the constants that follow the parameters; None where the
            library holds code for the virtual machine.
        program: for a straight program, the kernel of each call and the nodes that it computes.
    """

    report: dict[str, Any]
    embedded: tuple[np.ndarray, ...] | None
    program: tuple[tuple[str, list[Node]], ...] = ()


def build(
    module: tvm.IRModule,
    target: tvm.target.Target,
    library: Path,
    architectures: Sequence[str],
    emitted: Emitted,
    functions: Functions,
) -> Built:
    """Compile `module` and write the shared library `library`, and beside it the CUDA C of it.

    Args:
        emitted: which node each variable of `main` comes from.
        functions: what kernels of `module` call.

    Raises:
        UnsupportedOpError: TVM cannot compile what the graph was lowered to.
        OutputError: nvcc or the C++ compiler is missing, or fails.
    """
    elementary.register()
    report: dict[str, Any] = {}

    def compile_source(source: str) -> bytes:
        source = gemm.with_device_code(source)
        library.with_suffix(".cu").write_text(source)
        start = time.perf_counter()
        binary, report["gpu_kernels"] = nvcc.fatbin(source, architectures)
        report["nvcc_seconds"] = round(time.perf_counter() - start, 2)
        return binary

    with compiling(), target, compiled_by(compile_source):
        merged, nodes = fuse(module, emitted)
        fused, joined = join(schedule(merged, target))
        straight = straighten(fused)
        with tvm.transform.PassContext(opt_level=3, disabled_pass=[COMPACT]):
            if straight is None:
                pipeline = to_virtual_machine(target, functions)
                executable = tvm.compile(
                    fused, target=target, relax_pipeline=pipeline, tir_pipeline=DIRECT_LAUNCH
                )
            else:
                whole = tvm.IRModule({**straight.module.functions, **functions})
                executable = tvm.compile(whole, target=target, tir_pipeline=DIRECT_LAUNCH)
    report |= {"kernels": kernels(fused) + len(functions), "calls": calls(fused)}
    export(executable, platform.machine(), library, packing.packer(target.host, compile_source))
    if straight is None:
        return Built(report, None)
    for whole, singles in joined.items():
        nodes[whole] = [node for name in singles for node in nodes.get(name, [])]
    program = tuple((kernel, nodes.get(name, [])) for kernel, name in straight.calls)
    return Built(report, straight.embedded, program)


@contextmanager
def compiled_by(compile_source: Callable[[str], bytes]) -> Iterator[None]:
    """Within, TVM has CUDA C compiled so where it does that itself, which is where it has a GPU."""
    name = "tvm_callback_cuda_compile"
    before = tvm_ffi.get_global_func(name)
    tvm_ffi.register_global_func(name, compile_source, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(name, before, override=True)
