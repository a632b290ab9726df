"""Metrics against scikit-learn and against examples worked out by hand."""

from __future__ import annotations

import sys
from math import log2
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from graphopt.accuracy import metrics
from graphopt.accuracy.metrics import Answers
from graphopt.errors import InputError, SpecError


def answers(count: int = 300, groups: int = 12) -> Answers:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, count)
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0.01, 0.99).round(2)
    original = np.clip(scores + rng.normal(0, 0.01, count), 0, 1)
    return Answers(scores, labels, rng.integers(0, groups, count), original)


def test_auc_counts_ties_half() -> None:
    a = answers()
    assert len(set(a.scores)) < len(a.scores)
    assert metrics.find("auc")(a) == pytest.approx(roc_auc_score(a.labels, a.scores), abs=1e-12)


def test_gauc_is_the_weighted_mean_over_groups_with_both_labels() -> None:
    groups = np.array([0, 0, 0, 1, 1, 2, 2])
    labels = np.array([1, 0, 0, 1, 0, 1, 1])
    scores = np.array([0.5, 0.4, 0.6, 0.9, 0.1, 0.2, 0.3])
    found = metrics.find("gauc")(Answers(scores, labels, groups))
    assert found == pytest.approx((0.5 * 3 + 1.0 * 2) / 5)


def test_gauc_counts_ties_half_in_every_group() -> None:
    """As scikit-learn does it, one group after the other; a score may end one and begin another."""
    a = answers(groups=40)
    assert a.labels is not None and a.groups is not None
    masks = [a.groups == g for g in np.unique(a.groups)]
    both = [m for m in masks if len(set(a.labels[m])) == 2]
    wanted = [roc_auc_score(a.labels[m], a.scores[m]) for m in both]
    assert len(set(a.scores[both[0]])) < both[0].sum()
    found = metrics.find("gauc")(a)
    assert found == pytest.approx(np.average(wanted, weights=[m.sum() for m in both]), abs=1e-12)
    same = Answers(np.full(4, 0.5), np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1]))
    assert metrics.find("gauc")(same) == 0.5


def test_logloss_and_normalized_entropy() -> None:
    a = answers()
    assert a.labels is not None
    loss = log_loss(a.labels, a.scores)
    assert metrics.find("logloss")(a) == pytest.approx(loss)
    rate = a.labels.mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert metrics.find("ne")(a) == pytest.approx(loss / entropy)


def test_ndcg_and_hit_of_groups() -> None:
    a = answers()
    assert a.labels is not None and a.groups is not None
    masks = [a.groups == g for g in np.unique(a.groups)]
    wanted = np.mean([ndcg_score([a.labels[m]], [a.scores[m]], k=5) for m in masks])
    assert metrics.find("ndcg@5")(a) == pytest.approx(wanted)
    three = Answers(np.array([3.0, 2, 1, 1, 2, 3]), np.array([1, 0, 0] * 2), np.repeat([0, 1], 3))
    assert metrics.find("hit@1")(three) == 0.5
    assert metrics.find("hit@3")(three) == 1.0


def test_ndcg_and_hit_of_a_catalogue() -> None:
    scores = np.array([[9.0, 1, 3, 2], [9, 4, 3, 2]])
    a = Answers(scores, np.array([2, 3]))
    assert metrics.find("hit@2")(a) == 0.5
    assert metrics.ndcg(3, exclude=(0,))(a) == pytest.approx((1 / log2(2) + 1 / log2(4)) / 2)


def test_rankings_against_the_original() -> None:
    a = Answers(np.array([1.0, 2, 3, 4]), original=np.array([1.0, 2, 4, 3]))
    assert metrics.find("top@1")(a) == 0.0
    assert metrics.find("top@2")(a) == 1.0
    assert metrics.find("kendall")(a) == pytest.approx(4 / 6)
    assert metrics.find("kendall")(a.of_original()) == 1.0
    two = Answers(a.scores, groups=np.array([0, 0, 1, 1]), original=a.original)
    assert metrics.find("kendall")(two) == 0.0
    assert metrics.find("top@1")(two) == 0.5


def test_lists_that_cannot_be_ranked_otherwise_do_not_count() -> None:
    groups, original = np.array([0, 1, 1, 1, 2, 2]), np.array([1.0, 1, 2, 3, 7, 7])
    a = Answers(np.array([9.0, 3, 2, 1, 1, 2]), groups=groups, original=original)
    assert metrics.find("kendall")(a) == -1.0
    assert metrics.find("top@2")(a) == 0.5
    assert np.isnan(metrics.find("top@3")(a))
    assert np.isnan(metrics.find("kendall")(a.take(np.array([0, 4, 5]))))


def test_nothing_is_left_of_a_ranking_where_all_scores_are_alike() -> None:
    a = Answers(np.zeros(4), original=np.arange(4.0))
    assert metrics.find("kendall")(a) == 0.0


def test_output_errors() -> None:
    a = Answers(np.array([1.0, 2.0]), original=np.array([1.5, 2.0]))
    assert metrics.find("max-error")(a) == 0.5
    assert metrics.find("mean-error")(a) == 0.25


def test_mse() -> None:
    assert metrics.find("mse")(Answers(np.array([1.0, 2.0]), np.array([1.0, 4.0]))) == 2.0


def test_a_function_is_a_metric() -> None:
    metric = metrics.find(lambda scores, labels: (scores - labels).sum())
    assert metric(Answers(np.array([3.0]), np.array([1.0]))) == 2.0
    named = metrics.find("numpy:dot")
    assert named(Answers(np.array([3.0]), np.array([2.0]))) == 6.0
    assert named.loss(value=5.0, before=6.0) == 1.0


def test_a_function_in_a_file_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics_of_mine.py").write_text("def first(scores, labels): return scores[0]")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert metrics.find("metrics_of_mine:first")(answers()) == answers().scores[0]
    assert sys.path == before


def test_a_function_that_fails_is_not_a_bug_of_ours() -> None:
    a = Answers(np.array([3.0]), np.array([2.0]))
    with pytest.raises(InputError, match="metric join failed on 1 rows: TypeError: expected str"):
        metrics.find("os.path:join")(a)


@pytest.mark.parametrize("name", ["accuracy", "ndcg@0", "ndcg", "no.such.module:f", "numpy:nope"])
def test_unknown_metrics(name: str) -> None:
    with pytest.raises(SpecError):
        metrics.find(name)


def test_what_is_worse() -> None:
    assert metrics.find("auc").loss(value=0.7, before=0.8) == pytest.approx(0.1)
    assert metrics.find("logloss").loss(value=0.7, before=0.8) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("auc", {"labels": None}, "needs labels"),
        ("gauc", {"groups": None}, "needs groups"),
        ("auc", {"labels": np.array([0, 2])}, "0 or 1"),
        ("auc", {"labels": np.array([[0], [1]])}, r"shape \(2, 1\)"),
        ("auc", {"labels": np.array(["a", "b"])}, "finite numbers"),
        ("mse", {"labels": np.array([0, np.nan])}, "finite numbers"),
        ("mse", {"labels": np.array([[0, 1], [1, 0]])}, r"shape \(2, 2\)"),
        ("hit@2", {"labels": np.array(["a", "b"])}, "finite numbers"),
        ("ndcg@2", {"labels": np.array([np.inf, 1])}, "finite numbers"),
        ("ndcg@2", {"labels": np.array([-1, 1])}, "0 or more"),
        ("auc", {"scores": np.zeros((2, 3))}, "one score a row"),
        ("logloss", {"scores": np.array([0.5, 1.5])}, "probabilities"),
        ("ndcg@2", {"scores": np.zeros((2, 3)), "labels": np.array([0, 3])}, "scores 3 items"),
    ],
)
def test_what_metrics_refuse(name: str, changed: dict[str, np.ndarray | None], says: str) -> None:
    fields = {"scores": np.array([0.1, 0.2]), "labels": np.array([0, 1]), "groups": np.zeros(2)}
    with pytest.raises(InputError, match=says):
        metrics.find(name)(Answers(**{**fields, **changed}))  # type: ignore[arg-type]


def test_scores_that_are_not_numbers_have_no_metric() -> None:
    assert np.isnan(metrics.find("auc")(Answers(np.array([np.nan, 1]), np.array([0, 1]))))


def test_one_label_only_has_no_auc() -> None:
    assert np.isnan(metrics.find("auc")(Answers(np.array([0.1, 1]), np.array([1, 1]))))
