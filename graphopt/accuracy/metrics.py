"""What answers are judged by: the metrics of ranking, and how far they are from the original's."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Metric:
    """A number for `Answers`.

    Attributes:
        needs: the fields of `Answers` that it reads beside the scores.
        pointwise: it wants one score a row.
    """

    name: str
    compute: Callable[[Answers], float]
    higher_is_better: bool = True
    needs: tuple[str, ...] = ("labels",)
    pointwise: bool = True

    def __call__(self, answers: Answers) -> float:
        """The metric.

        Raises:
            InputError: something that it needs is not there, or it is not defined for these.
        """
        for field in self.needs:
            if getattr(answers, field) is None:
                raise InputError(f"metric {self.name} needs {field}; the data have none")
        if self.pointwise and answers.scores.ndim > 1:
            raise InputError(
                f"metric {self.name} wants one score a row, not {answers.scores.shape[1:]}; "
                "name the output, and its column, that is the score"
            )
        if not np.isfinite(answers.scores).all():
            return float("nan")
        return float(self.compute(answers))

    def loss(self, value: float, before: float) -> float:
        """By how much `value` is worse than `before`."""
        return before - value if self.higher_is_better else value - before


def _auc(a: Answers) -> float:
    return auc(a.scores, _binary(a))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The chance that a positive outranks a negative; NaN where one of them is missing."""
    positive = labels == 1
    wanted, others = np.count_nonzero(positive), np.count_nonzero(~positive)
    if not wanted or not others:
        return float("nan")
    above = scipy.stats.rankdata(scores)[positive].sum() - wanted * (wanted + 1) / 2
    return float(above / (wanted * others))


def _gauc(a: Answers) -> float:
    """The AUC of every group that has both labels, weighted by its rows."""
    labels = _binary(a)
    found = [(auc(a.scores[rows], labels[rows]), len(rows)) for rows in group_rows(a.groups)]
    values, weights = np.array(found).T
    known = ~np.isnan(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else np.nan


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

    return float(mean_squared_error(a.labels, a.scores))


def ndcg(cut: int, exclude: tuple[int, ...] = ()) -> Metric:
    """NDCG@cut of every group's list or, where a row scores a catalogue, of the row's own.

    Args:
        exclude: items of the catalogue that are never shown, such as padding.
    """

    def compute(a: Answers) -> float:
        if a.scores.ndim == 2:
            rank = _ranks_of_labels(a, exclude)
            return float(np.where(rank < cut, 1 / np.log2(rank + 2), 0).mean())
        from sklearn.metrics import ndcg_score

        lists = [rows for rows in _lists(a) if len(rows) > 1 and a.labels[rows].any()]  # type: ignore
        values = [ndcg_score([a.labels[r]], [a.scores[r]], k=cut) for r in lists]  # type: ignore
        return float(np.mean(values)) if values else float("nan")

    return Metric(f"ndcg@{cut}", compute, pointwise=False)


def hit(cut: int, exclude: tuple[int, ...] = ()) -> Metric:
    """The share of lists with something relevant among the first `cut`; arguments as in `ndcg`."""

    def compute(a: Answers) -> float:
        if a.scores.ndim == 2:
            return float((_ranks_of_labels(a, exclude) < cut).mean())
        lists = [rows for rows in _lists(a) if a.labels[rows].any()]  # type: ignore[index]
        tops = [rows[np.argsort(-a.scores[rows], kind="stable")[:cut]] for rows in lists]
        return float(np.mean([a.labels[top].any() for top in tops])) if tops else np.nan  # type: ignore

    return Metric(f"hit@{cut}", compute, pointwise=False)


def top_overlap(cut: int) -> Metric:
    """The share of the original's first `cut` that are still among the first `cut`."""

    def compute(a: Answers) -> float:
        assert a.original is not None
        pairs = zip(a.scores, a.original) if a.scores.ndim == 2 else _paired_lists(a)
        shares = []
        for scores, original in pairs:
            tops = [set(np.argsort(-s, kind="stable")[:cut].tolist()) for s in (scores, original)]
            shares.append(len(tops[0] & tops[1]) / max(1, len(tops[1])))
        return float(np.mean(shares))

    return Metric(f"top@{cut}", compute, needs=("original",), pointwise=False)


def _kendall(a: Answers) -> float:
    """Kendall's tau-b between the rankings, the mean over lists."""
    assert a.original is not None
    pairs = zip(a.scores, a.original) if a.scores.ndim == 2 else _paired_lists(a)
    taus = [scipy.stats.kendalltau(*pair).statistic for pair in pairs if len(pair[0]) > 1]
    known = [tau for tau in taus if not np.isnan(tau)]
    return float(np.mean(known)) if known else 1.0


def output_errors(a: Answers) -> np.ndarray:
    """How far each score is from the original's."""
    assert a.original is not None
    return np.abs(a.scores.astype(np.float64) - a.original)


def _output_error(name: str, over: Callable[[np.ndarray], Any]) -> Metric:
    return Metric(name, lambda a: float(over(output_errors(a))), False, ("original",), False)


_NAMED = {
    "auc": Metric("auc", _auc),
    "gauc": Metric("gauc", _gauc, needs=("labels", "groups")),
    "logloss": Metric("logloss", _logloss, False),
    "ne": Metric("ne", _normalized_entropy, False),
    "mse": Metric("mse", _mse, False),
    "max-error": Metric("max-error", lambda a: output_errors(a).max(), False, ("original",), False),
    "mean-error": Metric(
        "mean-error", lambda a: output_errors(a).mean(), False, ("original",), False
    ),
    "kendall": Metric("kendall", _kendall, needs=("original",), pointwise=False),
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
        function: Callable[..., float] = metric
        name = getattr(function, "__name__", "metric")
        return Metric(name, lambda a: float(function(a.scores, a.labels)), pointwise=False)
    cut = re.fullmatch(r"(\w+)@([1-9]\d*)", metric)
    if cut and cut[1] in _CUT:
        return _CUT[cut[1]](int(cut[2]))
    if ":" in metric:
        return find(_imported(metric))
    if metric not in _NAMED:
        raise SpecError(f"no metric is called {metric!r}; there are {', '.join(NAMES)}")
    return _NAMED[metric]


def _imported(text: str) -> Any:
    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"metric {text!r}: {error}") from None


# ------------------------------------------------------------------------- pieces


def group_rows(groups: np.ndarray | None) -> list[np.ndarray]:
    """The rows of each group."""
    assert groups is not None
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(groups[order][1:] != groups[order][:-1]) + 1
    return np.split(order, starts)


def _lists(a: Answers) -> list[np.ndarray]:
    """The rows that are ranked together: those of a group, or all."""
    return [np.arange(len(a.scores))] if a.groups is None else group_rows(a.groups)


def _paired_lists(a: Answers) -> list[tuple[np.ndarray, np.ndarray]]:
    assert a.original is not None
    return [(a.scores[rows], a.original[rows]) for rows in _lists(a)]


def _binary(a: Answers) -> np.ndarray:
    assert a.labels is not None
    if not np.isin(a.labels, (0, 1)).all():
        raise InputError("the labels must be 0 or 1 for this metric")
    return a.labels


def _ranks_of_labels(a: Answers, exclude: tuple[int, ...]) -> np.ndarray:
    """How many items each row scores higher than the one that it should find."""
    assert a.labels is not None
    wanted = a.labels.astype(np.int64)
    rows, items = a.scores.shape
    if not ((wanted >= 0) & (wanted < items)).all():
        raise InputError(f"a row scores {items} items, but labels go up to {wanted.max()}")
    shown = np.ones(items, bool)
    shown[list(exclude)] = False
    best = a.scores[np.arange(rows), wanted]
    above: np.ndarray = ((a.scores > best[:, None]) & shown).sum(axis=1)
    return above
