"""Measures candidates against the defaults and chooses."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean
from typing import Any

import numpy as np
import tvm

from graphopt.errors import SpecError, TuningMissError
from graphopt.latency import interleaved
from graphopt.targets.tuning.calls import calls_of
from graphopt.targets.tuning.database import Database, Key, as_text
from graphopt.targets.tuning.family import KernelFamily
from graphopt.targets.tuning.options import Tuning

SECONDS = 0.03  # how long candidate and default run at each size
LEAST_GAIN = 0.03  # a smaller one is what the luckiest of twenty equal candidates shows

Measure = Callable[[KernelFamily, Any, Any, Any, tvm.target.Target], list[float]]
"""(family, problem, default, candidate, target) -> the times of the candidate over the default's.

One for each size that the problem is tuned at. Candidates that compute something else are an error.
"""


_Pending = tuple[KernelFamily, Any, Any]
"""A family, a problem, and parameters that are to be tried."""


@dataclass
class Summary:
    """What tuning did.

    Attributes:
        problems, known: how many different ones there are, and of how many something is known.
        measured: measurements made.
        speedup: the time of the default over that of what is chosen, their geometric mean.
    """

    problems: int = 0
    known: int = 0
    measured: int = 0
    speedup: float = 1.0


class Tuner:
    """Chooses the parameters of kernels for one target.

    Args:
        target: what to generate code for.
        machine: names the CPU and its instruction sets, or the GPU, in the database.
        measure: how, by default on this CPU.

    Raises:
        SpecError: another machine is to measure what is for a CPU.
    """

    def __init__(
        self,
        tuning: Tuning,
        target: tvm.target.Target,
        machine: str,
        measure: Measure | None = None,
    ) -> None:
        if tuning.remote is not None and measure is None:
            raise SpecError("--rpc measures on GPUs; kernels for a CPU are tuned on this machine's")
        self.tuning, self._target, self._machine = tuning, target, machine
        self._measure = measure or on_cpu
        self._database = Database(tuning.cache, tuning.read_only)
        self.summary = Summary()

    def tune(self, family: KernelFamily, problems: Iterable[Any]) -> None:
        """`tune_all` for problems of one family."""
        self.tune_all((family, problem) for problem in problems)

    def tune_all(self, tasks: Iterable[tuple[KernelFamily, Any]]) -> None:
        """Measure candidates for problems, as far as the limits allow; all get their turn.

        Raises:
            TuningMissError: nothing is known of a problem, and that is to be an error.
        """
        distinct = list(dict.fromkeys(tasks))
        if self.tuning.measures:
            self._measure_all(distinct)
        self.summary.problems += len(distinct)
        costs = [self._database.costs(self._key(*task)) for task in distinct]
        for (family, problem), known in zip(distinct, costs):
            if not known and self.tuning.error_on_miss:
                raise TuningMissError(
                    f"{self.tuning.cache}: nothing about {family.name} {family.described(problem)} "
                    f"on {self._machine.split(';')[0]}; "
                    "tune the model first, without --error-on-cache-miss"
                )
        found = [_gainful(min(known.values())) for known in costs if known]
        self.summary.known += len(found)
        if found:
            self.summary.speedup = 1 / geometric_mean(found)

    def params(self, family: KernelFamily, problem: Any) -> Any:
        """The best parameters known for `problem`, or the default ones."""
        known = self._database.costs(self._key(family, problem))
        best = min(known, key=lambda text: (known[text], text), default="")
        if not best or _gainful(known[best]) == 1:
            return family.default(problem)
        return family.parse(json.loads(best))

    def gain(self, family: KernelFamily, problem: Any) -> float:
        """The time of the default over that of `params`."""
        known = self._database.costs(self._key(family, problem))
        return 1 / _gainful(min(known.values(), default=1.0))

    def _key(self, family: KernelFamily, problem: Any) -> Key:
        text = as_text(asdict(problem))
        return Key(family.name, family.version(), text, self._machine, tvm.__version__)

    def _unknown(self, family: KernelFamily, problem: Any) -> list[Any]:
        known = self._database.costs(self._key(family, problem))
        everything = [family.default(problem), *family.candidates(problem)]
        return [c for c in dict.fromkeys(everything) if as_text(asdict(c)) not in known]

    def _measure_all(self, tasks: Sequence[tuple[KernelFamily, Any]]) -> None:
        tuning = self.tuning
        until = time.monotonic() + tuning.seconds if tuning.seconds is not None else float("inf")
        pending: list[_Pending] = []
        for task in tasks:
            if time.monotonic() < until:  # listing candidates may take time too
                pending += [(*task, candidate) for candidate in self._unknown(*task)]
        pending = _in_turns(pending)
        for done, (family, problem, params) in enumerate(pending[: tuning.trials]):
            if time.monotonic() >= until:
                break
            tuning.progress(done, len(pending), f"{family.name} {family.described(problem)}")
            cost = self._cost(family, problem, params)
            self._database.add(self._key(family, problem), asdict(params), cost)
            self.summary.measured += 1

    def _cost(self, family: KernelFamily, problem: Any, params: Any) -> float:
        """The time of `params` over that of the default, as a geometric mean over the sizes.

        A lead is measured twice and the smaller one counts: on a busy machine others pass as leads.
        """
        default = family.default(problem)
        if params == default:
            return 1.0

        def measured() -> float:
            return geometric_mean(self._measure(family, problem, default, params, self._target))

        cost = measured()
        return cost if _gainful(cost) == 1 else max(cost, measured())


def require_close(
    family: KernelFamily, problem: Any, params: Any, found: np.ndarray, expected: np.ndarray
) -> None:
    """A candidate computes what the default does."""
    if np.array_equal(found, expected, equal_nan=True):
        return
    error = float(np.abs(np.subtract(found, expected, dtype=np.float64)).max(initial=0.0))
    limit = family.tolerance(problem) * float(np.abs(expected).max(initial=1.0))
    assert error <= limit, (problem, params)


def on_cpu(
    family: KernelFamily, problem: Any, default: Any, params: Any, target: tvm.target.Target
) -> list[float]:
    ratios = []
    tries = zip(
        calls_of(family, problem, default, target), calls_of(family, problem, params, target)
    )
    for (base, expected), (call, found) in tries:
        base()
        call()
        require_close(family, problem, params, found, expected)
        turns = {"default": base, "candidate": call}
        taken = interleaved(turns, SECONDS, clock=time.thread_time)
        ratios.append(taken["candidate"].median / taken["default"].median)
    return ratios


def _gainful(cost: float) -> float:
    """A cost that is worth leaving the default for, or that of the default."""
    return cost if cost <= 1 - LEAST_GAIN else 1.0


def _in_turns(pending: Sequence[_Pending]) -> list[_Pending]:
    """The first candidate of every problem, then the second of every one, and so on."""
    groups = [list(group) for _, group in itertools.groupby(pending, key=lambda task: task[:2])]
    rounds = itertools.zip_longest(*groups)
    return [task for turn in rounds for task in turn if task is not None]
