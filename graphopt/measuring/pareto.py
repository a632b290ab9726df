"""What a range of error budgets buys: metric, size and latency of the model that each gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graphopt import api
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.judge import Judge, Verdict
from graphopt.checking.verification import original_model
from graphopt.errors import BudgetExceededError, SpecError
from graphopt.latency import interleaved
from graphopt.targets.base import Oob

ROWS = 512  # that a latency is measured with, where so many can be taken from the data
NOISE = 0.03  # of a latency: models closer than this are equally fast


@dataclass(frozen=True)
class Point:
    """A model that some budget gives, or why it gives none.

    Attributes:
        max_drop: the budget; None for the model without compression.
        bytes: of everything that was written.
        microseconds: the median latency of a call.
        verdict: on the rows that had no part in choosing.
        best: no other point is as small, as fast and as accurate, and better in something.
        failure: why the budget cannot be met.
    """

    max_drop: float | None
    bytes: int = 0
    microseconds: float = 0.0
    verdict: Verdict | None = None
    best: bool = False
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        """The point as JSON-able data."""
        return asdict(self)


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep, the model without compression first, then by rising budget.

    Attributes:
        rows: how many a latency was measured with.
    """

    metric: str
    target: str
    rows: int
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """The sweep as JSON-able data."""
        return {**asdict(self), "points": [point.to_json() for point in self.points]}


def sweep(
    model: api.Model,
    target: str = "cpu",
    *,
    budget: Budget,
    drops: Sequence[float],
    passes: str | None = None,
    oob: Oob = "error",
    seconds: float = 0.5,
    progress: Callable[[str], None] | None = None,
) -> Sweep:
    """Compress `model` under each of several budgets, and hold the results side by side.

    A point is what `compile` gives with the same arguments and that `max_drop`; nothing is kept.

    Args:
        budget: the data and the metric; its `max_drop` is not used.
        drops: the budgets.
        seconds: how long each latency is measured, all in turns.

    Raises:
        SpecError: there are no budgets.
        ArtifactError: what is made for the target cannot run here.
    """
    if not drops:
        raise SpecError("a sweep needs at least one budget")
    tell = progress or (lambda stage: None)
    file = Path(model) if isinstance(model, (str, Path)) else None
    graph = api.optimize(model, passes="O0")
    tell("measure")
    with original_model(graph, file) as original:
        budget = replace(budget, data=budget.dataset(original.signature))
        judge = budget.judges(original, original.signature)[1]
    models: dict[float | None, api.Runnable] = {}
    points: dict[float | None, Point] = {}
    for drop in (None, *sorted(set(drops))):
        tell("compile without compression" if drop is None else f"spend {drop:g}")
        try:
            models[drop] = api.compile(
                model,
                target,
                passes=passes,
                budget=None if drop is None else replace(budget, max_drop=drop),
                oob=oob,
                verify=drop is not None,
            )
        except BudgetExceededError as error:
            points[drop] = Point(drop, failure=str(error))
            continue
        points[drop] = Point(drop, _bytes(models[drop]), verdict=judge.verdict(models[drop]))
    tell("measure latencies")
    rows, taken = _latencies(judge, models, seconds)
    timed = [replace(p, microseconds=taken.get(drop, 0.0)) for drop, p in points.items()]
    marked = tuple(replace(point, best=is_best(point, timed)) for point in timed)
    return Sweep(judge.metric.name, target, rows, marked)


def _bytes(model: api.Runnable) -> int:
    path = model.path
    files = path.iterdir() if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(file.stat().st_size for file in files)


def _latencies(
    judge: Judge, models: dict[float | None, api.Runnable], seconds: float
) -> tuple[int, dict[float | None, float]]:
    """How many rows were taken, and the median time of a call in microseconds."""
    batch = judge.data.batches[0]
    feeds = batch if judge.data.whole else {name: a[:ROWS] for name, a in batch.items()}
    rows = judge.data.sizes[0] if judge.data.whole else min(ROWS, judge.data.sizes[0])
    calls = {str(drop): (lambda m=m: m.run(feeds)) for drop, m in models.items()}
    taken = interleaved(calls, seconds)
    return rows, {drop: taken[str(drop)].median for drop in models}


def is_best(point: Point, points: Sequence[Point]) -> bool:
    """True if no other point is as good in everything and better in something."""
    if point.verdict is None:
        return False

    def beats(other: Point) -> bool:
        if other.verdict is None:
            return False
        assert point.verdict is not None
        pairs = (
            (other.bytes, point.bytes, 0.0),
            (other.microseconds, point.microseconds, NOISE),
            (max(0.0, other.verdict.drop), max(0.0, point.verdict.drop), 0.0),
        )
        no_worse = all(a <= b * (1 + noise) for a, b, noise in pairs)
        return no_worse and any(a * (1 + noise) < b for a, b, noise in pairs)

    return not any(beats(other) for other in points if other is not point)
