"""If, Loop and Scan: by a function of the host, or written out where steps are known and few."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax

from graphopt.ir.control import loop_trip_count
from graphopt.ir.graph import Node
from graphopt.targets.cuda.launching import Launcher
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.relax.ops import control, repetition


@lowers("If")
def _branch(lower: CudaLowering, node: Node) -> Sequence[relax.Expr]:
    return repetition.branch(lower, node, Launcher)


@lowers("Loop")
def _loop(lower: CudaLowering, node: Node) -> list[relax.Expr]:
    steps = control.few_steps(node, loop_trip_count(node))
    if steps is not None:
        return control.loop(lower, node, steps)
    return repetition.loop(Launcher(lower), node)


@lowers("Scan")
def _scan(lower: CudaLowering, node: Node) -> list[relax.Expr]:
    steps = control.few_steps(node, control.length(node))
    if steps is not None:
        return control.scan(lower, node, steps)
    return repetition.scan(Launcher(lower), node)
