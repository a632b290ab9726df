"""The driver: what it takes, what it leaves, and who has the last word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt.accuracy.budget import Budget, Speed, Spending
from graphopt.accuracy.compression import Compression
from graphopt.accuracy.datasets import Dataset, in_batches
from graphopt.accuracy.judge import Judge
from graphopt.accuracy.metrics import find
from graphopt.accuracy.workbench import Workbench
from graphopt.errors import BudgetExceededError, InputError, SpecError
from graphopt.ir.graph import Graph, Value
from graphopt.passes.quantize_tables import QuantizeTables
from graphopt.pipeline.base import PassContext, Proposal
from graphopt.pipeline.report import Report
from graphopt.serving.signature import Runnable
from graphopt.targets.portable import OnnxModel
from graphopt.testing import parse

SITES = 8
MODEL = """(float[N,8] x) => (float[N] y) <float[8] a = {1, 1, 1, 1, 1, 1, 1, 1}> {
    u = Mul(x, a)
    axis = Constant<value_ints=[1]>()
    y = ReduceSum<keepdims=0>(u, axis)
}"""
TABLES = """(int64[N] user, int64[N] item) => (float[N,1] y)
<float[300,16] users, float[400,16] items, float[16,1] w> {
    u = Gather(users, user)
    i = Gather(items, item)
    p = Mul(u, i)
    z = MatMul(p, w)
    y = Sigmoid(z)
}"""


def running(graph: Graph) -> AbstractContextManager[OnnxModel]:
    return nullcontext(Workbench().load(graph))


def ones(rows: int = 64) -> Dataset:
    return in_batches({"x": np.ones((rows, SITES), np.float32)})


def proposals(errors: Mapping[int, float], what: str = "less") -> list[Proposal]:
    """For each column of x, to multiply it by 1 - error."""

    def apply_at(column: int, error: float) -> Callable[[Graph, Mapping[Value, Value]], None]:
        def apply(copy: Graph, values: Mapping[Value, Value]) -> None:
            node = next(n for n in copy.nodes if n.op == "Mul")
            array = node.const(1)
            assert array is not None
            changed = array.copy()
            changed[column] -= error
            copy.set_input(node, 1, copy.constant(changed))

        return apply

    return [Proposal(f"site {k}", what, 100, e, apply_at(k, e)) for k, e in errors.items()]


def spending(graph: Graph, limit: float) -> Spending:
    with running(graph) as original:
        return Spending(Judge(original, ones(), find("max-error")), limit)


def chosen(errors: Mapping[int, float], limit: float) -> tuple[set[str], int]:
    graph = parse(MODEL)
    found = spending(graph, limit)
    taken = found.choose(graph, proposals(errors))
    return {p.site for p in taken}, found.trials


def test_everything_at_once_takes_one_trial() -> None:
    sites, trials = chosen(dict.fromkeys(range(SITES), 0.01), limit=0.1)
    assert (len(sites), trials) == (SITES, 1)


def test_as_much_as_fits() -> None:
    sites, trials = chosen(dict.fromkeys(range(SITES), 0.01), limit=0.055)
    assert len(sites) == 5
    assert trials < 12


def test_the_cheapest_come_first_and_one_offender_stops_nobody() -> None:
    errors = {0: 0.9, 1: 0.01, 2: 0.02, 3: 0.01}
    assert chosen(errors, limit=0.1)[0] == {"site 1", "site 2", "site 3"}


def test_nothing_fits() -> None:
    assert chosen(dict.fromkeys(range(SITES), 1.0), limit=0.1)[0] == set()


def test_a_site_that_does_not_fit_takes_its_next_alternative() -> None:
    graph = parse(MODEL)
    coarse = proposals({0: 0.5, 1: 0.01}, "coarse")
    fine = [Proposal(p.site, "fine", 50, *_rest(p)) for p in proposals({0: 0.05})]
    taken = spending(graph, 0.1).choose(graph, [*fine, *coarse])
    assert {(p.site, p.what) for p in taken} == {("site 0", "fine"), ("site 1", "coarse")}


def _rest(p: Proposal) -> tuple[float, Callable[[Graph, Mapping[Value, Value]], None]]:
    return p.expected_error, p.apply


@pytest.mark.parametrize(
    ("multiplies", "fastest", "sites"),
    [
        (True, 0, {"site 0", "site 1", "site 2", "site 3"}),
        (False, 4, {"site 3"}),  # the only change that is not for speed alone
        (None, 4, {"site 0", "site 1", "site 2", "site 3"}),
        (None, 2, {"site 0", "site 3"}),  # with the larger half of what is for speed
        (None, 1, {"site 3"}),
    ],
)
def test_what_is_for_speed_must_be_faster(
    multiplies: bool | None, fastest: int, sites: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is faster with as many columns changed as `fastest` says, or fewer."""
    graph, small = parse(MODEL), proposals(dict.fromkeys(range(4), 0.01))
    changes = [replace(p, saves=100 - k, for_speed=k < 3) for k, p in enumerate(small)]
    budget = replace(spending(graph, 1.0), speed=Speed(multiplies))

    def is_faster(before: OnnxModel, after: OnnxModel, data: Dataset) -> bool:
        changed = [round(100 * (SITES - m.run(data.batches[0])["y"][0])) for m in (before, after)]
        return changed[0] < changed[1] <= fastest

    monkeypatch.setattr("graphopt.accuracy.budget.is_faster", is_faster)
    assert {p.site for p in budget.choose(graph, changes)} == sites


@pytest.mark.parametrize(("multiplies", "what"), [(True, "int8"), (False, "int4"), (None, "int4")])
def test_what_keeps_a_layer_from_multiplying_bytes(multiplies: bool | None, what: str) -> None:
    graph = parse(MODEL)
    (eight,) = proposals({0: 0.01}, "int8")
    four = replace(eight, what="int4", saves=200, in_floats=True)
    budget = replace(spending(graph, 1.0), speed=Speed(multiplies))
    assert [p.what for p in budget.choose(graph, [eight, four])] == [what]


def test_the_graph_is_left_as_it_was() -> None:
    graph = parse(MODEL)
    before = graph.clone()
    spending(graph, 1.0).choose(graph, proposals({0: 0.1}))
    with running(before) as a, running(graph) as b:
        feeds = ones().batches[0]
        np.testing.assert_array_equal(a.run(feeds)["y"], b.run(feeds)["y"])


def test_values_are_observed_on_the_rows_that_choose() -> None:
    graph = parse(MODEL)
    product = next(n for n in graph.nodes if n.op == "Mul").output
    ((found,),) = spending(graph, 1.0).observe(graph, [product])
    np.testing.assert_array_equal(found, np.ones((64, SITES), np.float32))


# ------------------------------------------------------------------- whole models


def clicks(rows: int = 4000) -> tuple[Graph, Dataset]:
    graph = parse(TABLES)
    rng = np.random.default_rng(0)
    feeds = {"user": rng.integers(0, 300, rows), "item": rng.integers(0, 400, rows)}
    with running(graph) as model:
        scores = model.run(feeds)["y"][:, 0]
    labels = (rng.random(rows) < scores).astype(np.float32)
    return graph, in_batches(feeds, labels)


def test_tables_shrink_within_the_budget() -> None:
    graph, data = clicks()
    report = Report()
    found = graphopt.optimize(graph, budget=Budget(data, 0.001, "auc"), report=report)
    facts = report.facts["compression"]
    assert facts["held_out"]["drop"] <= 0.001
    assert facts["held_out"]["rows"] + facts["rows_for_choosing"] == data.rows
    before, after = report.facts["constant_bytes"]
    assert after < 0.3 * before
    assert {n.op for n in found.nodes} >= {"graphopt::QuantizedLookup"}
    again = graphopt.optimize(graph)
    assert not any(n.op == "graphopt::QuantizedLookup" for n in again.nodes)


def test_without_labels_the_budget_is_on_the_scores() -> None:
    graph, data = clicks()
    report = Report()
    unlabelled = Dataset(data.batches)
    graphopt.optimize(graph, budget=Budget(unlabelled, 1e-3), report=report)
    held_out = report.facts["compression"]["held_out"]
    assert held_out["metric"] == "mean-error"
    assert 0 < held_out["after"] <= 1e-3


def test_a_compiled_model_is_judged_itself() -> None:
    graph, data = clicks()
    report = Report()
    artifact = graphopt.compile(graph, budget=Budget(data, 0.001, "auc"), report=report)
    assert report.verification is not None
    assert report.verification["drop"] <= 0.001
    assert report.facts["artifact_bytes"] > 0
    some = {name: array[:7] for name, array in data.batches[0].items()}
    together = artifact.run(some)["y"]
    alone = [
        artifact.run({n: a[k : k + 1] for n, a in some.items()})["y"][0] for k in range(len(some))
    ]
    np.testing.assert_array_equal(together[: len(alone)], alone)


def test_a_budget_that_cannot_be_met() -> None:
    graph, data = clicks()
    report = Report()
    with pytest.raises(BudgetExceededError, match="every change that was tried costs more"):
        graphopt.optimize(graph, budget=Budget(data, 0.0, "max-error"), report=report)
    assert "compression" not in report.facts


def test_rows_that_did_not_choose_have_the_last_word() -> None:
    """Rows of equal elements lose next to nothing in few bits; only others show what is lost."""
    graph = parse(TABLES)
    users, items = (v for v in graph.constants() if v.shape in ((300, 16), (400, 16)))
    assert users.const is not None and items.const is not None
    users.const = np.concatenate([np.sign(users.const[:150]) / 2, users.const[150:]])
    items.const = np.sign(items.const) / 2
    halves = []
    with running(graph) as original:
        for first in (0, 150):
            rows = {"user": np.arange(first, first + 150), "item": np.arange(150)}
            halves.append(Judge(original, in_batches(rows), find("max-error")))

    def quantize(graph: Graph, spending: Spending) -> None:
        QuantizeTables().run(graph, PassContext(budget=spending))

    with pytest.raises(BudgetExceededError, match="on rows not used for choosing"):
        Compression(2e-3, *halves).run(graph, quantize, Report())
    Compression(2e-3, halves[0], halves[0]).run(graph, quantize, Report())


def test_nothing_to_compress_is_said() -> None:
    report = Report()
    graph = parse(MODEL)
    rows = np.random.default_rng(0).normal(size=(64, SITES)).astype(np.float32)
    graphopt.optimize(graph, budget=Budget(in_batches({"x": rows}), 0.1), report=report)
    assert any("nothing in the model could be compressed" in text for text in report.warnings)


def test_wrong_labels_and_wrong_outputs() -> None:
    graph, data = clicks(200)
    assert data.labels is not None
    with pytest.raises(InputError, match="0 or 1"):
        graphopt.optimize(graph, budget=Budget(Dataset(data.batches, data.labels + 1), 0.1, "auc"))
    with pytest.raises(InputError, match="are all labels alike"):
        same = Dataset(data.batches, np.ones(200))
        graphopt.optimize(graph, budget=Budget(same, 0.1, "auc"))
    with pytest.raises(InputError, match="no output 'z'"):
        graphopt.optimize(graph, budget=Budget(data, 0.1, "auc", score="z"))
    with pytest.raises(InputError, match="columns 0 to 0"):
        graphopt.optimize(graph, budget=Budget(data, 0.1, "auc", score="y:1"))


def test_an_original_that_answers_nan() -> None:
    graph, data = clicks(200)
    table = next(v for v in graph.constants() if v.shape == (300, 16))
    table.const = np.full((300, 16), np.nan, np.float32)
    with pytest.raises(InputError, match="holds NaN"):
        graphopt.optimize(graph, budget=Budget(data, 0.1, "auc"))


def test_a_budget_wants_a_pass_that_spends_it() -> None:
    graph, data = clicks(200)
    with pytest.raises(SpecError, match="lossy passes only"):
        graphopt.optimize(graph, passes="O2", budget=Budget(data, 0.1))


@pytest.mark.parametrize("drop", [-0.1, float("nan")])
def test_drops_that_make_no_sense(drop: float) -> None:
    with pytest.raises(SpecError, match="cannot be allowed"):
        Budget("data.npz", drop)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data": {"x": [1.0]}}, "data are a file or a Dataset, not dict"),
        ({"data": None}, "data are a file or a Dataset, not NoneType"),
        ({"trace": [1]}, "trace are a file or a Dataset, not list"),
        ({"max_drop": None}, "a drop of None cannot be allowed"),
        ({"max_drop": "1%"}, "a drop of 1% cannot be allowed"),
        ({"metric": None}, "a metric is a name, a Metric or a function, not None"),
    ],
)
def test_budgets_of_other_types(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        Budget(**{"data": "data.npz", "max_drop": 0.1, **given})


def test_lossy_passes_do_nothing_without_a_budget() -> None:
    graph, _ = clicks(200)
    found = graphopt.optimize(graph, passes="O3")
    assert not any(n.op == "graphopt::QuantizedLookup" for n in found.nodes)


def test_a_drop_inside_the_noise_is_called_that() -> None:
    graph, data = clicks(400)
    with running(graph) as model:
        verdict = Judge(model, data, find("auc")).verdict(model)
        assert verdict.drop == 0.0
        assert verdict.in_noise
        assert "within noise" in str(verdict)
        grouped = Dataset(data.batches, data.labels, np.arange(400) % 20)
        assert Judge(model, grouped, find("gauc")).verdict(model).in_noise


def test_a_drop_beyond_the_noise() -> None:
    graph, data = clicks(2000)

    class Upside:
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"y": 1 - model.run(feeds)["y"]}

    with running(graph) as model:
        verdict = Judge(model, data, find("auc")).verdict(Upside())
    assert not verdict.in_noise
    low, high = verdict.interval
    assert 0 < low <= verdict.drop <= high


class Reversed:
    """A model whose first score is that of the last row."""

    def __init__(self, model: Runnable) -> None:
        self.model = model

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": self.model.run(feeds)["y"][::-1]}


@pytest.mark.parametrize("metric", ["kendall", "top@10"])
def test_one_score_a_row_is_ranked_over_the_rows(metric: str) -> None:
    """Also where the output is [rows, 1], and every output is looked at."""
    graph, data = clicks(200)
    with running(graph) as model:
        assert model.run(data.batches[0])["y"].shape == (200, 1)
        verdict = Judge(model, Dataset(data.batches), find(metric)).verdict(Reversed(model))
    assert verdict.before == 1.0
    assert verdict.after < 0.4


def test_whole_lists_are_resampled() -> None:
    """Of two groups one is reversed, so that a resampling loses nothing, half or all."""
    graph, data = clicks(200)
    groups = np.arange(200) % 2

    class HalfReversed:
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            y = model.run(feeds)["y"].copy()
            y[1::2] = -y[1::2]
            return {"y": y}

    with running(graph) as model:
        judge = Judge(model, Dataset(data.batches, None, groups), find("kendall"), "y")
        assert judge.verdict(HalfReversed()).interval == (0.0, 2.0)


def test_caution_adds_standard_errors() -> None:
    graph, data = clicks(2000)
    table = next(v for v in graph.constants() if v.shape == (300, 16))
    with running(graph) as original:
        judge = Judge(original, data, find("auc"))
        assert table.const is not None
        table.const = table.const + np.random.default_rng(0).normal(0, 0.1, table.const.shape)
        table.const = table.const.astype(np.float32)
        with running(graph) as changed:
            drop, verdict = judge.drop(changed), judge.verdict(changed)
            error = judge.drop(changed, caution=1.0) - drop
    low, high = verdict.interval
    assert error == pytest.approx((high - low) / 4, rel=0.5)  # 95 % are 2 errors to each side


def test_what_is_not_faster_gives_way_to_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where speed is measured, one kind of what is for speed is tried after another."""
    graph = parse(MODEL)
    first = [replace(p, for_speed=True) for p in proposals({0: 0.01, 1: 0.01}, "fixed")]
    second = [replace(p, what="by row") for p in first]
    tried: list[int] = []
    monkeypatch.setattr(
        "graphopt.accuracy.budget.is_faster",
        lambda before, after, data: tried.append(1) is None and len(tried) > 2,
    )
    budget = replace(spending(graph, 1.0), speed=Speed(None))
    taken = budget.choose(graph, [*first, *second])
    assert {p.what for p in taken} == {"by row"}
    assert len(tried) == 3  # two of the first kind and one alone, then two of the second
