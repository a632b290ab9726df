"""Schedules for kernels that have no template, as TVM's MetaSchedule proposes them.

A proposal is the list of steps (a trace) that turns the loops of a kernel with one size fixed into
others. None changes what an element is made of or the order that sums run in: stages are not
substituted into one another (`relax.schedule` says why), reductions are not split among partial
sums, and loops stay on one thread. Whether a proposal gives the same bits is seen all the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import meta_schedule
from tvm.sym import Analyzer

from graphopt.errors import TuningCacheError
from graphopt.targets.kernels import elementary  # noqa: F401  # functions that kernels call
from graphopt.targets.relax.primfunc import OPAQUE, int64
from graphopt.targets.relax.schedule import SCHEDULED, schedule
from graphopt.targets.tuning.family import KernelFamily, Trial, in_short

MOST = 24
"""Proposals for a kernel and size; they are drawn at random, always the same ones."""


@dataclass(frozen=True)
class ScheduleProblem:
    """A kernel at a size.

    Attributes:
        kernel: a digest of what it computes.
        size: what its free size is fixed to; 0 if it has none.
    """

    kernel: str
    size: int


@dataclass(frozen=True)
class FoundSchedule:
    """Steps as JSON; none for the kernel as it is for all sizes."""

    trace: str = ""


class ScheduleFamily(KernelFamily[ScheduleProblem, FoundSchedule]):
    """Kernels of one module.

    Attributes:
        failures: by the names of kernels, why MetaSchedule has nothing to propose.
    """

    name = "meta-schedule"

    def __init__(self, target: tvm.target.Target) -> None:
        self._target = target
        self._kernels: dict[str, tuple[str, tirx.PrimFunc]] = {}
        self.failures: dict[str, str] = {}

    def problem(self, name: str, kernel: tirx.PrimFunc, size: int) -> ScheduleProblem:
        """The problem of a kernel that `reason_against` has nothing against."""
        digest = _digest(kernel)
        self._kernels.setdefault(digest, (name, kernel))
        return ScheduleProblem(digest, size)

    def default(self, problem: ScheduleProblem) -> FoundSchedule:
        return FoundSchedule()

    def candidates(self, problem: ScheduleProblem) -> Sequence[FoundSchedule]:
        name, kernel = self._kernels[problem.kernel]
        try:
            found = _proposals(_fixed(kernel, problem.size), self._target)
            return [FoundSchedule(_text(proposal.trace)) for proposal in found]
        except (RuntimeError, ValueError, TypeError) as error:  # TVM's are of these kinds
            self.failures[name] = in_short(error)
            return []

    def parse(self, fields: dict[str, Any]) -> FoundSchedule:
        return FoundSchedule(**fields)

    def kernel(self, problem: ScheduleProblem, params: FoundSchedule) -> tirx.PrimFunc:
        """For all sizes by default, else for the size of `problem` alone.

        Raises:
            TuningCacheError: the steps do not fit the kernel.
        """
        _, kernel = self._kernels[problem.kernel]
        if params == FoundSchedule():
            return schedule(tvm.IRModule({"main": kernel}))["main"]
        made = s_tir.Schedule(_module(_fixed(kernel, problem.size)))
        try:
            s_tir.schedule.Trace.apply_json_to_schedule(json.loads(params.trace), made)
            if not all(last.apply(made) for last in _last_steps()):
                raise ValueError("the result cannot be compiled")
        except (RuntimeError, ValueError, TypeError) as error:
            raise TuningCacheError(f"steps of a schedule do not fit its kernel: {error}") from None
        return made.mod["main"].with_attr(SCHEDULED, True).without_attr("global_symbol")

    def trials(self, problem: ScheduleProblem, params: FoundSchedule) -> list[Trial]:
        _, kernel = self._kernels[problem.kernel]
        rng = np.random.default_rng(0)
        operands = [_shape_and_dtype(p) for p in _fixed(kernel, problem.size).params]
        return [Trial([_random(rng, *operand) for operand in operands[:-1]], operands[-1])]

    def tolerance(self, problem: ScheduleProblem) -> float:
        """None: a row has the same bits in every batch, so it must at every size."""
        return 0.0

    def described(self, problem: ScheduleProblem) -> str:
        return f"{self._kernels[problem.kernel][0]} size={problem.size or 'fixed'}"


def reason_against(kernel: tirx.PrimFunc) -> str:
    """Why no schedule is searched for a kernel; "" if one is."""
    parts: list[Any] = []
    tvm_ffi.structural_walk(kernel.body, (tirx.Stmt, parts.append))
    if any(isinstance(part, tirx.AssertStmt) for part in parts):
        return "it checks its operands"
    if not all(isinstance(param.ty, tirx.BufferType) for param in kernel.params):
        return "it takes sizes as operands"
    if int(kernel.attrs.get("op_pattern", 0)) == OPAQUE:
        return "it is opaque to fusion"
    if len(free_sizes(kernel)) > 1:
        return "several of its sizes are free"
    if any(_loads(index) for index in _indices(kernel)):
        return "it reads where the elements of an operand say"
    written = [part.buffer for part in parts if isinstance(part, tirx.BufferStore)]
    results = [param for param in kernel.params if any(map(param.same_as, written))]
    if len(results) != 1 or not results[0].same_as(kernel.params[-1]):
        return "it has several results"
    return ""


def free_sizes(kernel: tirx.PrimFunc) -> list[Any]:
    """The variables in the shapes of a kernel's operands."""
    dims = (int64(dim) for param in kernel.params for dim in param.ty.shape)
    return list(dict.fromkeys(var for dim in dims for var in tirx.analysis.undefined_vars(dim)))


def _indices(kernel: tirx.PrimFunc) -> Iterator[Any]:
    """What elements a kernel reads and writes."""
    stores: list[Any] = []
    tvm_ffi.structural_walk(kernel.body, (tirx.BufferStore, stores.append))
    for access in (*_loads(kernel.body), *stores):
        yield from access.indices


def _loads(part: Any) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(part, (tvm.ir.TensorLoad, found.append))
    return found


def _digest(kernel: tirx.PrimFunc) -> str:
    """Of what a kernel computes, and what steps call its stages."""
    stages: list[Any] = []
    tvm_ffi.structural_walk(kernel.body, (s_tir.SBlock, stages.append))
    names = [str(stage.name_hint) for stage in stages]
    text = f"{tvm_ffi.structural_hash(kernel)} {' '.join(names)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fixed(kernel: tirx.PrimFunc, size: int) -> tirx.PrimFunc:
    """A kernel whose free size, if it has one, is `size`."""
    if not size:
        return kernel
    simplify = Analyzer().simplify

    def number(dim: Any) -> Any:
        known = tvm_ffi.structural_map(int64(dim), (tirx.Var, lambda _: int64(size)))
        return simplify(known)

    buffers = {
        param: tirx.decl_buffer([number(dim) for dim in param.ty.shape], param.ty.dtype, param.name)
        for param in kernel.params
    }
    return kernel.specialize(buffers)


def _shape_and_dtype(param: Any) -> tuple[tuple[int, ...], str]:
    return tuple(int(dim) for dim in param.ty.shape), str(param.ty.dtype)


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if "int" in dtype:
        return rng.integers(1, 10, shape).astype(dtype)  # anything divides by these
    return rng.standard_normal(shape).astype(dtype)


# ------------------------------------------------------------------- MetaSchedule


def _proposals(kernel: tirx.PrimFunc, target: tvm.target.Target) -> list[s_tir.Schedule]:
    rule = meta_schedule.schedule_rule
    space = meta_schedule.space_generator.PostOrderApply(
        sch_rules=[
            rule.MultiLevelTiling(
                structure="SSRSRS",
                max_innermost_factor=64,
                reuse_write=rule.ReuseType(req="may", levels=[1, 2], scope="global"),
            ),
            rule.ParallelizeVectorizeUnroll(
                max_jobs_per_core=-1,  # one thread
                max_vectorize_extent=64,
                unroll_max_steps=[0, 16, 64, 512],
                unroll_explicit=True,
            ),
            rule.RandomComputeLocation(),
        ],
        postprocs=_last_steps(),
        mutator_probs={},
    )
    # The constructor of `TuneContext` first parses all that is known of tensor instructions, which
    # takes minutes and is not needed here.
    api = meta_schedule._ffi_api
    draw = meta_schedule.search_strategy.ReplayTrace()
    context = api.TuneContext(_module(kernel), target, space, draw, "main", 1, 1, None)
    api.TuneContextInitialize(context)
    context.pre_tuning(MOST, MOST, context.generate_design_space())
    found = context.generate_measure_candidates() or []
    context.post_tuning()
    return [candidate.sch for candidate in found]


def _last_steps() -> list[Any]:
    """What follows from the steps of a trace; they are taken again, as those noted may not fit."""
    postproc = meta_schedule.postproc
    return [
        postproc.DisallowDynamicLoop(),
        postproc.RewriteParallelVectorizeUnroll(),
        postproc.RewriteReductionBlock(),
    ]


def _module(kernel: tirx.PrimFunc) -> tvm.IRModule:
    return tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})


def _text(trace: Any) -> str:
    steps = trace.simplified(remove_postproc=True)
    return json.dumps(_plain(steps.as_json()), separators=(",", ":"))


def _plain(value: Any) -> Any:
    """What TVM holds as Python's own numbers, texts and lists."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if hasattr(value, "value"):
        return _plain(value.value)
    return [_plain(element) for element in value]
