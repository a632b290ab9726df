"""Relax module → compiled library."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax, s_tir, tirx
from tvm.error import InternalError

from graphopt.errors import OutputError, UnsupportedOpError
from graphopt.ir.graph import Node
from graphopt.targets.relax.attribution import Emitted, attribute
from graphopt.targets.relax.branches import has_branches, with_sizes_apart
from graphopt.targets.relax.direct import DIRECT
from graphopt.targets.relax.linking import linker_options
from graphopt.targets.relax.schedule import schedule
from graphopt.targets.relax.straight import straighten, unaligned

Functions = Mapping[Any, tirx.PrimFunc]
Revise = Callable[[tvm.IRModule, tvm.IRModule], tvm.IRModule]
"""(kernels before, and after they were scheduled) -> those to compile"""

ROOM = 64 << 20  # bytes; a large model takes 10 MB


@dataclass(frozen=True)
class Built:
    """What a library was made of.

    Attributes:
        kernels: how many functions were generated.
        calls: how many of them one inference calls where nothing loops.
        sizes: for a straight program, where the arguments of its plan are read; None where the
            library holds code for the virtual machine.
        shaping: as of `Straight`.
        embedded: for a straight program, the constants that follow the parameters.
        program: for a straight program, the kernel of each call and the nodes that it computes.
        shared, late: as of `Straight`.
    """

    kernels: int
    calls: int
    sizes: tuple[tuple[int, int], ...] | None
    embedded: tuple[np.ndarray, ...] = ()
    program: tuple[tuple[str, list[Node]], ...] = ()
    shared: tuple[int, int] | None = None
    shaping: int | None = None
    late: tuple[int, ...] = ()


def build(
    module: tvm.IRModule,
    target: tvm.target.Target,
    machine: str,
    library: Path,
    emitted: Emitted,
    functions: Functions,
    revise: Revise | None = None,
) -> Built:
    """Compile `module` for `target`, of architecture `machine`, into the shared library `library`.

    Args:
        emitted: which node each variable of `main` comes from.
        functions: what kernels of `module` call.
        revise: gives other kernels in the place of those that are scheduled.

    Raises:
        UnsupportedOpError: TVM itself cannot compile what the graph was lowered to.
    """
    with compiling():
        merged, nodes = fuse(module, emitted)
        fused = schedule(merged)
        if revise is not None:
            fused = revise(merged, fused)
        straight = straighten(fused)
        if straight is None:
            pipeline = to_virtual_machine(target, functions)
            executable = tvm.compile(
                _unaligned(fused), target=target, relax_pipeline=pipeline, tir_pipeline=DIRECT
            )
        else:
            whole = _with(straight.module, functions)
            executable = tvm.compile(whole, target=target, tir_pipeline=DIRECT)
    export(executable, machine, library)
    counts = (kernels(fused) + len(functions), calls(fused))
    if straight is None:
        return Built(*counts, None)
    program = tuple((kernel, nodes.get(name, [])) for kernel, name in straight.calls)
    return Built(
        *counts,
        straight.sizes,
        straight.embedded,
        program,
        straight.shared,
        straight.shaping,
        straight.late,
    )


@contextmanager
def compiling() -> Iterator[None]:
    """Turns TVM's complaints about a module into UnsupportedOpError."""
    try:
        yield
    except (InternalError, s_tir.ScheduleError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UnsupportedOpError("Graph", f"TVM cannot generate code for it: {reason}") from error


def _with(module: tvm.IRModule, functions: Functions) -> tvm.IRModule:
    return tvm.IRModule({**module.functions, **functions}, attrs=module.attrs)


def _unaligned(module: tvm.IRModule) -> tvm.IRModule:
    functions = {
        name: unaligned(function) if isinstance(function, tirx.PrimFunc) else function
        for name, function in module.functions.items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)


def export(
    executable: tvm.runtime.Executable,
    machine: str,
    library: Path,
    pack: Callable[..., str] | None = None,
) -> None:
    """Write and link the code.

    Args:
        pack: packs what is for other devices than the host (TVM's `fpack_imports`).

    Raises:
        OutputError: there is no room for it, or no compiler to link it with.
    """
    options = linker_options(machine)
    with tempfile.TemporaryDirectory(dir=library.parent) as workspace:
        # LLVM ends the process where it cannot write, so see first that it can.
        with (Path(workspace) / "room").open("wb") as room:
            os.posix_fallocate(room.fileno(), 0, ROOM)
            room.truncate(0)
        try:
            executable.export_library(
                str(library), workspace_dir=workspace, fpack_imports=pack, **options
            )
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise OutputError(f"the compiled code cannot be linked: {reason}") from None


def fuse(module: tvm.IRModule, emitted: Emitted) -> tuple[tvm.IRModule, dict[str, list[Node]]]:
    """Merge neighbouring computations into one kernel each, and drop what nothing uses.

    Returns:
        the module, and the nodes behind each variable of its `main` that a kernel computes.
    """
    prepare = [
        relax.transform.ConvertToDataflow(),
        relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),  # stays a view
        relax.transform.DeadCodeElimination(["main"]),
        relax.transform.AnnotateTIROpPattern(),
    ]
    merge = [relax.transform.FuseTIR(), relax.transform.DeadCodeElimination(["main"])]
    with tvm.transform.PassContext(opt_level=3):
        clean = with_sizes_apart(tvm.transform.Sequential(prepare)(module))
        grouped = relax.transform.FuseOps()(clean)
        nodes = attribute(clean, grouped, emitted)
        return tvm.transform.Sequential(merge)(grouped), nodes


def to_virtual_machine(
    target: tvm.target.Target, functions: Functions | None = None
) -> tvm.transform.Pass:
    """The pass that turns a fused and scheduled module into code for Relax's virtual machine.

    Args:
        functions: what its kernels call, which nobody else may.
    """
    plan = relax.transform.StaticPlanBlockMemory()
    passes = [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        plan,
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]

    @tvm.transform.module_pass(opt_level=0)
    def lower(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        # Memory that one branch allocates is planned for the other one too, where it is not there.
        planned = [p for p in passes if p is not plan or not has_branches(module)]
        with target:
            return _with(tvm.transform.Sequential(planned)(module), functions or {})

    return lower


def kernels(module: tvm.IRModule) -> int:
    """How many kernels a module has."""
    return sum(isinstance(function, tirx.PrimFunc) for function in module.functions.values())


def calls(module: tvm.IRModule) -> int:
    """How many calls of kernels one run of `main` makes where nothing loops."""
    total = 0

    def count(expr: relax.Expr) -> None:
        nonlocal total
        if isinstance(expr, relax.Call) and expr.op == tvm.ir.Op.get("relax.call_tir"):
            total += 1

    relax.analysis.post_order_visit(module["main"], count)
    return total
