"""Searches schedules for kernels that have no template, where `Tuning.meta_schedule` says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import geometric_mean

import tvm
from tvm import tirx

from graphopt.targets.relax.dispatch import with_bodies
from graphopt.targets.relax.schedule import SCHEDULED
from graphopt.targets.tuning.isolated import Isolated
from graphopt.targets.tuning.options import Tuning
from graphopt.targets.tuning.schedules import ScheduleFamily, free_sizes, reason_against
from graphopt.targets.tuning.tuner import Tuner


@dataclass
class Searched:
    """What the search did.

    Attributes:
        kernels: how many have no template and were searched, or known from the cache.
        measured: measurements made.
        gains: by kernel and size, the time of the default over that of what was chosen, where
            something was.
        speedup: the geometric mean of these gains.
        left: by kernel, why it was not searched.
        failed: by kernel and size, what became of candidates that are of no use.
    """

    kernels: int = 0
    measured: int = 0
    gains: dict[str, float] = field(default_factory=dict)
    speedup: float = 1.0
    left: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def search(
    merged: tvm.IRModule,
    scheduled: tvm.IRModule,
    tuning: Tuning,
    target: tvm.target.Target,
    machine: str,
) -> tuple[tvm.IRModule, Searched]:
    """`scheduled` with the best schedules that are known for the sizes in `tuning.batches`.

    Args:
        merged: the same kernels before they were scheduled.
        machine: as of `Tuner`.

    Raises:
        TuningMissError: the cache had to know them all and does not.
    """
    family, found = ScheduleFamily(target), Searched()
    problems = {}
    for symbol, kernel in merged.functions.items():
        if not isinstance(kernel, tirx.PrimFunc) or kernel.attrs.get(SCHEDULED, False):
            continue
        name = str(symbol.name_hint)
        if reason := reason_against(kernel):
            found.left[name] = reason
            continue
        sizes = sorted(set(tuning.batches)) if free_sizes(kernel) else [0]
        problems[symbol] = {size: family.problem(name, kernel, size) for size in sizes}
    result = tvm.IRModule(dict(scheduled.functions), attrs=scheduled.attrs)
    with Isolated() as isolated:
        tuner = Tuner(tuning, target, machine, isolated.measure)
        tuner.tune(family, [problem for each in problems.values() for problem in each.values()])
    for symbol, each in problems.items():
        gains = {size: tuner.gain(family, problem) for size, problem in each.items()}
        bodies = {
            size: family.kernel(problem, tuner.params(family, problem))
            for size, problem in each.items()
            if gains[size] > 1
        }
        found.gains |= {family.described(each[size]): round(gains[size], 3) for size in bodies}
        general = scheduled[symbol]
        if 0 in bodies:
            result[symbol] = bodies[0]
        elif bodies:
            result[symbol] = with_bodies(general, free_sizes(general)[0], bodies)
    found.kernels, found.measured = len(problems), tuner.summary.measured
    if found.gains:
        found.speedup = geometric_mean(found.gains.values())
    found.failed = {**family.failures, **dict(isolated.failures)}
    return result, found
