"""Measures how much worse a model answers than the original, on given data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy  # loads its parts on first use

from graphopt.accuracy.datasets import Dataset
from graphopt.accuracy.metrics import Answers, Metric, mean, output_errors
from graphopt.errors import InputError
from graphopt.serving.signature import Runnable

FEW_RESAMPLES = 40  # a standard error to about a tenth
RESAMPLES = 200  # the 95 % interval of a drop is then known to about a tenth of its width


@dataclass(frozen=True)
class Verdict:
    """A model held against the original on some rows.

    Attributes:
        before, after: the metric of the original and of the model.
        drop: by how much the model is worse.
        interval: where the drop lies in 95 of 100 resamplings of the rows (or of the groups).
        in_noise: the interval holds 0, so that these rows cannot tell the models apart.
        max_error: the largest difference of any score.
    """

    metric: str
    rows: int
    before: float
    after: float
    drop: float
    interval: tuple[float, float]
    in_noise: bool
    max_error: float

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON-able data."""
        return asdict(self)

    def __str__(self) -> str:
        low, high = self.interval
        noise = ", within noise" if self.in_noise else ""
        return (
            f"{self.metric} {self.before:.6f} → {self.after:.6f} on {self.rows} rows "
            f"(drop {self.drop:.2g}, 95 % between {low:.2g} and {high:.2g}{noise})"
        )


class Judge:
    """Holds models against one original, on one set of rows.

    Args:
        score: the output that is judged, with a column as `name:1` if it has several; by default
            the first output. Metrics that compare with the original alone look at every output.

    Raises:
        InputError: the data lack what the metric needs, or the original answers NaN.
    """

    def __init__(
        self, original: Runnable, data: Dataset, metric: Metric, score: str | None = None
    ) -> None:
        self.data, self.metric, self.score = data, metric, score
        self.every_output = metric.needs == ("original",) and score is None
        self.original = self._scores(original)
        for name, scores in self.original.items():
            if not np.isfinite(scores).all():
                raise InputError(f"the original model's {name!r} holds NaN or infinity on the data")
            if len(scores) != data.rows:
                raise InputError(f"{data.rows} rows of data give {len(scores)} rows of {name!r}")
        self.before = [metric(a.of_original()) for a in self._answers(self.original)]
        if not np.isfinite(self.before).all():
            raise InputError(f"{metric.name} is not defined on the data: are all labels alike?")

    def drop(self, model: Runnable, caution: float = 0.0) -> float:
        """How much worse `model` is, plus `caution` standard errors; infinite if undefined."""
        scores = self._scores(model)
        drop = self._drop(scores)
        if not caution or not np.isfinite(drop):
            return drop
        errors = [self._resampled(a, FEW_RESAMPLES).std() for a in self._answers(scores)]
        return drop + caution * max(errors)

    def verdict(self, model: Runnable) -> Verdict:
        """`model` judged in full."""
        scores = self._scores(model)
        answers = self._answers(scores)
        worst = int(np.argmax([self._loss(a, b) for a, b in zip(answers, self.before)]))
        judged, before = answers[worst], self.before[worst]
        interval = self._interval(judged)
        errors = [output_errors(a).max() for a in answers]
        return Verdict(
            self.metric.name,
            self.data.rows,
            before,
            self.metric(judged),
            self._drop(scores),
            interval,
            interval[0] <= 0 <= interval[1],
            float(max(errors)),
        )

    def _scores(self, model: Runnable) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {}
        for batch in self.data.batches:
            for name, array in self._judged(model.run(batch)).items():
                found.setdefault(name, []).append(array)
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def _judged(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs that count, [rows, 1] as [rows]."""
        if self.every_output:
            return {n: _flat(a) for n, a in outputs.items() if a.dtype.kind == "f" and a.ndim}
        name, _, column = (self.score or next(iter(outputs))).partition(":")
        if name not in outputs:
            raise InputError(f"the model has no output {name!r}; it has {', '.join(outputs)}")
        scores = outputs[name]
        if column:
            flat = scores.reshape(len(scores), -1)
            if not column.isdecimal() or int(column) >= flat.shape[1]:
                raise InputError(f"output {name!r} has columns 0 to {flat.shape[1] - 1}")
            return {name: flat[:, int(column)]}
        return {name: _flat(scores)}

    def _answers(self, scores: dict[str, np.ndarray]) -> list[Answers]:
        data = self.data
        return [Answers(s, data.labels, data.groups, self.original[n]) for n, s in scores.items()]

    def _loss(self, answers: Answers, before: float) -> float:
        value = self.metric(answers)
        return self.metric.loss(value, before) if np.isfinite(value) else np.inf

    def _drop(self, scores: dict[str, np.ndarray]) -> float:
        return max(self._loss(a, before) for a, before in zip(self._answers(scores), self.before))

    def _interval(self, answers: Answers) -> tuple[float, float]:
        """Percentiles of the drop as rows, or whole groups of them, are drawn with replacement."""
        drops = self._resampled(answers, RESAMPLES)
        if not len(drops):
            return (-np.inf, np.inf)
        low, high = np.percentile(drops, [2.5, 97.5])
        return (float(low), float(high))

    def _resampled(self, answers: Answers, count: int) -> np.ndarray:
        """The drop on `count` resamplings, as far as it is defined on them."""
        metric, both = self.metric, (answers, answers.of_original())
        ways: list[Callable[[np.ndarray], float]]
        if metric.lists is not None and (answers.groups is not None or answers.scores.ndim == 2):
            lists = [metric.lists(a) for a in both]
            units = len(lists[0][0])
            ways = [partial(_mean_of, values, weights) for values, weights in lists]
        else:
            units = len(answers.scores)
            ways = [partial(_metric_of, metric, a) for a in both]
        if units < 2:
            return np.zeros(0)
        found: np.ndarray = scipy.stats.bootstrap(
            (np.arange(units),),
            lambda drawn: metric.loss(*(way(drawn) for way in ways)),
            vectorized=False,
            method="percentile",
            n_resamples=count,
            rng=np.random.default_rng(0),
        ).bootstrap_distribution
        return found[np.isfinite(found)]


def _mean_of(values: np.ndarray, weights: np.ndarray, drawn: np.ndarray) -> float:
    return mean(values[drawn], weights[drawn])


def _metric_of(metric: Metric, answers: Answers, drawn: np.ndarray) -> float:
    return metric(answers.take(drawn))


def _flat(scores: np.ndarray) -> np.ndarray:
    """[rows, 1] as [rows]: one score a row is no catalogue."""
    return scores[:, 0] if scores.ndim == 2 and scores.shape[1] == 1 else scores
