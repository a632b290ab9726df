"""What answers are judged by: the metrics of ranking, and how far they are from the original's."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # loads its parts on first use

from graphopt.errors import InputError, SpecError


@dataclass(frozen=True)
class Answers:
    """The scores of a model, and what to hold them against.

    Attributes:
        scores: [rows], or [rows, items] where each row scores a catalogue.
        labels: [rows]: the truth, or the item wanted of the catalogue.
        groups: [rows]: whose list a row belongs to.
        original: the original model's scores.
    """

    scores: np.ndarray
    labels: np.ndarray | None = None
    groups: np.ndarray | None = None
    original: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Answers:
        """Some of the rows."""
        fields = (self.scores, self.labels, self.groups, self.original)
        return Answers(*[None if array is None else array[rows] for array in fields])  # type: ignore

    def of_original(self) -> Answers:
        """What the original model answered."""
        assert self.original is not None
        return replace(self, scores=self.original)


_HINTS = {
    "labels": " (--labels says what they are called)",
    "groups": " (--group says what they are called)",
}

Lists = tuple[np.ndarray, np.ndarray]
"""What each of several lists has, NaN if that is not defined, and its weight."""


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    """The weighted mean of those that are defined; NaN where none is."""
    known = ~np.isnan(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else np.nan


@dataclass(frozen=True)
class Metric:
    """A number for `Answers`.

    Attributes:
        needs: the fields of `Answers` that it reads beside the scores.
        pointwise: it wants one score a row.
        lists: for the mean over lists (those of groups, or of rows that score a catalogue): what
            each has, NaN where that is not defined, and what it weighs. `compute` is their mean.
    """

    name: str
    compute: Callable[[Answers], float]
    higher_is_better: bool = True
    needs: tuple[str, ...] = ("labels",)
    pointwise: bool = True
    lists: Callable[[Answers], Lists] | None = None

    def __call__(self, answers: Answers) -> float:
        """The metric.

        Raises:
            InputError: something that it needs is not there, or it is not defined for these.
        """
        for field in self.needs:
            if getattr(answers, field) is None:
                raise InputError(
                    f"metric {self.name} needs {field}; the data have none{_HINTS.get(field, '')}"
                )
        if self.pointwise and answers.scores.ndim > 1:
            raise InputError(
                f"metric {self.name} wants one score a row, not {answers.scores.shape[1:]}; "
                "name the output, and its column, that is the score"
            )
        if not np.isfinite(answers.scores).all():
            return float("nan")
        return float(self.compute(answers))

    @staticmethod
    def over_lists(
        name: str,
        lists: Callable[[Answers], Lists],
        needs: tuple[str, ...] = ("labels",),
        pointwise: bool = False,
    ) -> Metric:
        """The weighted mean of what lists have, more of which is better."""
        return Metric(name, lambda a: mean(*lists(a)), True, needs, pointwise, lists)

    def loss(self, value: float, before: float) -> float:
        """By how much `value` is worse than `before`."""
        return before - value if self.higher_is_better else value - before


def _auc(a: Answers) -> float:
    return auc(a.scores, _binary(a))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The chance that a positive outranks a negative; NaN where one of them is missing."""
    positive = labels == 1
    wanted, others = scores[positive], np.sort(scores[~positive])
    if not len(wanted) or not len(others):
        return float("nan")
    wanted = np.sort(wanted)  # neighbours are searched for in the same cache lines
    below, upto = (np.searchsorted(others, wanted, side).sum() for side in ("left", "right"))
    return float((below + upto) / (2 * len(wanted) * len(others)))


def _gauc(a: Answers) -> Lists:
    """The AUC of every group, which weighs as much as it has rows."""
    assert a.groups is not None
    order = np.lexsort((a.scores, a.groups))
    groups, scores, positive = a.groups[order], a.scores[order], _binary(a)[order] == 1
    starts = _starts(groups)
    sizes = np.diff(starts, append=len(groups))
    # Equal scores of a group share the mean of their ranks.
    runs = np.union1d(starts, _starts(scores))
    lengths = np.diff(runs, append=len(groups))
    ranks = np.repeat(runs + (lengths + 1) / 2, lengths) - np.repeat(starts, sizes)
    wanted = np.add.reduceat(positive.astype(np.float64), starts)
    above = np.add.reduceat(np.where(positive, ranks, 0), starts) - wanted * (wanted + 1) / 2
    pairs = wanted * (sizes - wanted)
    return np.divide(above, pairs, out=np.full(len(starts), np.nan), where=pairs > 0), sizes


def _logloss(a: Answers) -> float:
    from sklearn.metrics import log_loss

    labels = _binary(a)
    if a.scores.min() < 0 or a.scores.max() > 1:
        raise InputError("metrics logloss and ne want probabilities; the scores are not in [0, 1]")
    return float(log_loss(labels, a.scores.astype(np.float64), labels=[0, 1]))


def _normalized_entropy(a: Answers) -> float:
    """Log loss in units of that of always answering the base rate."""
    rate = np.full(len(a.scores), _binary(a).mean())
    return _logloss(a) / _logloss(replace(a, scores=rate))


def _mse(a: Answers) -> float:
    from sklearn.metrics import mean_squared_error

    return float(mean_squared_error(_labels(a), a.scores))


def ndcg(cut: int, exclude: tuple[int, ...] = ()) -> Metric:
    """NDCG@cut of every group's list or, where a row scores a catalogue, of the row's own.

    Args:
        exclude: items of the catalogue that are never shown, such as padding.
    """

    def lists(a: Answers) -> Lists:
        if a.scores.ndim == 2:
            rank = _ranks_of_labels(a, exclude)
            return _alike(np.where(rank < cut, 1 / np.log2(rank + 2), 0))
        from sklearn.metrics import ndcg_score

        labels = _labels(a)
        if labels.min() < 0:
            raise InputError("the labels say how relevant a row is: 0 or more for this metric")

        def of(rows: np.ndarray) -> float:
            if len(rows) < 2 or not labels[rows].any():
                return np.nan
            return float(ndcg_score([labels[rows]], [a.scores[rows]], k=cut))

        return _alike([of(rows) for rows in _lists(a)])

    return Metric.over_lists(f"ndcg@{cut}", lists)


def hit(cut: int, exclude: tuple[int, ...] = ()) -> Metric:
    """The share of lists with something relevant among the first `cut`; arguments as in `ndcg`."""

    def lists(a: Answers) -> Lists:
        if a.scores.ndim == 2:
            return _alike(_ranks_of_labels(a, exclude) < cut)
        labels = _labels(a)

        def of(rows: np.ndarray) -> float:
            if not labels[rows].any():
                return np.nan
            top = rows[np.argsort(-a.scores[rows], kind="stable")[:cut]]
            return float(labels[top].any())

        return _alike([of(rows) for rows in _lists(a)])

    return Metric.over_lists(f"hit@{cut}", lists)


def top_overlap(cut: int) -> Metric:
    """The share of the original's first `cut` that are still there; of longer lists only."""

    def of(scores: np.ndarray, original: np.ndarray) -> float:
        if len(scores) <= cut:
            return np.nan
        ours, theirs = (np.argsort(-s, kind="stable")[:cut] for s in (scores, original))
        return len(np.intersect1d(ours, theirs)) / cut

    return Metric.over_lists(f"top@{cut}", lambda a: _compared(a, of), ("original",))


def _kendall(a: Answers) -> Lists:
    """Kendall's tau-b between the rankings; of lists that the original ranks."""

    def of(scores: np.ndarray, original: np.ndarray) -> float:
        if len(original) < 2 or (original == original[0]).all():
            return np.nan
        tau = float(scipy.stats.kendalltau(scores, original).statistic)
        return 0.0 if np.isnan(tau) else tau  # all scores alike: nothing is left of the ranking

    return _compared(a, of)


def output_errors(a: Answers) -> np.ndarray:
    """How far each score is from the original's."""
    assert a.original is not None
    return np.abs(a.scores.astype(np.float64) - a.original)


def _output_error(name: str, over: Callable[[np.ndarray], Any]) -> Metric:
    return Metric(name, lambda a: float(over(output_errors(a))), False, ("original",), False)


_NAMED = {
    "auc": Metric("auc", _auc),
    "gauc": Metric.over_lists("gauc", _gauc, ("labels", "groups"), pointwise=True),
    "logloss": Metric("logloss", _logloss, False),
    "ne": Metric("ne", _normalized_entropy, False),
    "mse": Metric("mse", _mse, False),
    "max-error": _output_error("max-error", np.max),
    "mean-error": _output_error("mean-error", np.mean),
    "kendall": Metric.over_lists("kendall", _kendall, ("original",)),
}
_CUT = {"ndcg": ndcg, "hit": hit, "top": top_overlap}
NAMES = (*_NAMED, *(f"{name}@K" for name in _CUT))


def find(metric: str | Metric | Callable[..., float]) -> Metric:
    """The metric of a name (`auc`, `ndcg@10`, `module:function`) or of a function.

    A function takes scores and labels, as arrays, and gives a number of which more is better.

    Raises:
        SpecError: there is no such metric.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return _of_function(metric)
    if not isinstance(metric, str):
        raise SpecError(f"a metric is a name, a Metric or a function, not {metric!r}")
    cut = re.fullmatch(r"(\w+)@([1-9]\d*)", metric)
    if cut and cut[1] in _CUT:
        return _CUT[cut[1]](int(cut[2]))
    if ":" in metric:
        return find(_imported(metric))
    if metric not in _NAMED:
        raise SpecError(f"no metric is called {metric!r}; there are {', '.join(NAMES)}")
    return _NAMED[metric]


def _of_function(function: Callable[..., float]) -> Metric:
    name = getattr(function, "__name__", "metric")

    def compute(a: Answers) -> float:
        try:
            return float(function(a.scores, a.labels))
        except Exception as error:  # whatever the user's function raises
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"metric {name} failed on {len(a.scores)} rows: {what}") from error

    return Metric(name, compute, pointwise=False)


def _imported(text: str) -> Any:
    """What `module:function` names; modules in the current folder are found too."""
    module, _, name = text.partition(":")
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"metric {text!r}: {error}") from None
    finally:
        sys.path[:] = before


# ------------------------------------------------------------------------- pieces


def _starts(keys: np.ndarray) -> np.ndarray:
    """Where runs of equal keys begin."""
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))


def group_rows(groups: np.ndarray) -> list[np.ndarray]:
    """The rows of each group."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, _starts(groups[order])[1:])


def _lists(a: Answers) -> list[np.ndarray]:
    """The rows that are ranked together: those of a group, or all."""
    return [np.arange(len(a.scores))] if a.groups is None else group_rows(a.groups)


def _compared(a: Answers, of: Callable[[np.ndarray, np.ndarray], float]) -> Lists:
    """What `of` says of the scores and the original's, list by list."""
    assert a.original is not None
    if a.scores.ndim == 2:
        return _alike([of(*pair) for pair in zip(a.scores, a.original)])
    return _alike([of(a.scores[rows], a.original[rows]) for rows in _lists(a)])


def _alike(values: Any) -> Lists:
    """Lists that weigh the same."""
    return np.asarray(values, np.float64), np.ones(len(values))


def _labels(a: Answers) -> np.ndarray:
    assert a.labels is not None
    if a.labels.ndim != 1:
        raise InputError(f"the labels have shape {a.labels.shape}; this metric wants one a row")
    if a.labels.dtype.kind not in "biuf" or not np.isfinite(a.labels).all():
        raise InputError("the labels must be finite numbers for this metric")
    return a.labels


def _binary(a: Answers) -> np.ndarray:
    labels = _labels(a)
    if not np.isin(labels, (0, 1)).all():
        raise InputError("the labels must be 0 or 1 for this metric")
    return labels


def _ranks_of_labels(a: Answers, exclude: tuple[int, ...]) -> np.ndarray:
    """How many items each row scores higher than the one that it should find."""
    wanted = _labels(a).astype(np.int64)
    rows, items = a.scores.shape
    if not ((wanted >= 0) & (wanted < items)).all():
        raise InputError(f"a row scores {items} items, but labels go up to {wanted.max()}")
    shown = np.ones(items, bool)
    shown[list(exclude)] = False
    best = a.scores[np.arange(rows), wanted]
    above: np.ndarray = ((a.scores > best[:, None]) & shown).sum(axis=1)
    return above
