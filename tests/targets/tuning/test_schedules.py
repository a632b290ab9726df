"""Schedules that MetaSchedule proposes: for which kernels, with the same bits, out of a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from graphopt import api
from graphopt.errors import SpecError, TuningCacheError, TuningMissError, VerificationError
from graphopt.ir.graph import Graph
from graphopt.pipeline.report import Report
from graphopt.targets.base import find
from graphopt.targets.cpu import searched
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.relax import build, lowering
from graphopt.targets.relax.schedule import SCHEDULED
from graphopt.targets.tuning import schedules
from graphopt.targets.tuning.calls import calls_of
from graphopt.targets.tuning.isolated import Isolated
from graphopt.targets.tuning.options import Tuning
from graphopt.targets.tuning.schedules import ScheduleFamily, reason_against
from graphopt.testing import parse

HOST = CpuTarget.parse("")
CHAIN = """(float[N,67] x) => (float[N,67] y) <float[67] s> {
    a = Mul(x, s)
    b = Erf(a)
    c = Mul(b, x)
    y = Cos(c)
}"""
NORMS = """(float[N,16,20] x) => (float[N,20] y) {
    axis = Constant<value = int64[1] {1}>()
    y = ReduceL2<keepdims = 0>(x, axis)
}"""
SIZES = (1, 7, 64, 65)


def kernels(text: str) -> dict[str, tirx.PrimFunc]:
    """Those of a model that have no template."""
    lowered = lowering.lower(HOST.legalize(parse(text)), "error")
    merged, _ = build.fuse(lowered.module, lowered.emitted)
    return {
        symbol.name_hint: function
        for symbol, function in merged.functions.items()
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get(SCHEDULED, False)
    }


def only(text: str) -> tuple[str, tirx.PrimFunc]:
    ((name, kernel),) = kernels(text).items()
    return name, kernel


def inputs(size: int, shape: tuple[int, ...] = (67,)) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(size).standard_normal((size, *shape)).astype(np.float32)}


def compiled(graph: Graph, tuning: Tuning | None = None, verify: bool = False) -> tuple[Any, Any]:
    """The artifact, and what its report says of the search."""
    report = Report()
    artifact = api.compile(graph, tuning=tuning, verify=verify, report=report)
    return artifact, report.facts.get("search")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Nothing is measured, every candidate is twice as fast; the problems that were asked about."""
    asked: list[Any] = []

    def measure(self: Isolated, family: Any, problem: Any, *rest: Any) -> list[float]:
        asked.append(problem)
        return [0.5]

    monkeypatch.setattr(Isolated, "measure", measure)
    return asked


# ---------------------------------------------------------------------- proposals


@pytest.mark.parametrize("text", [CHAIN, NORMS], ids=["chain", "norms"])
def test_proposals_are_always_the_same_and_give_the_same_bits(text: str) -> None:
    name, kernel = only(text)
    family = ScheduleFamily(HOST.llvm)
    problem = family.problem(name, kernel, 7)
    found = list(family.candidates(problem))
    assert found == list(family.candidates(problem))
    assert len(set(found)) > 3
    ((base, expected),) = calls_of(family, problem, family.default(problem), HOST.llvm)
    base()
    for params in (found[0], found[-1]):
        ((call, output),) = calls_of(family, problem, params, HOST.llvm)
        call()
        np.testing.assert_array_equal(output, expected)
        assert np.abs(output).max() > 0
    assert not family.failures


def test_nothing_runs_on_other_threads() -> None:
    name, kernel = only(CHAIN)
    family = ScheduleFamily(HOST.llvm)
    problem = family.problem(name, kernel, 512)
    for params in family.candidates(problem):
        assert "T.parallel" not in family.kernel(problem, params).script()


def test_kernels_that_compute_the_same_share_a_result() -> None:
    family = ScheduleFamily(HOST.llvm)
    renamed = CHAIN.replace("x", "features").replace("N,", "rows,")
    problems = {family.problem(*only(text), 64) for text in (CHAIN, renamed)}
    assert len(problems) == 1
    assert family.problem(*only(CHAIN.replace("67", "66")), 64) not in problems
    assert family.problem(*only(CHAIN.replace("Cos", "Sin")), 64) not in problems


def test_steps_of_another_kernel() -> None:
    family = ScheduleFamily(HOST.llvm)
    chain, norms = family.problem(*only(CHAIN), 7), family.problem(*only(NORMS), 7)
    with pytest.raises(TuningCacheError, match="do not fit"):
        family.kernel(norms, family.candidates(chain)[0])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CHAIN, ""),
        ("(float[N,M] x) => (float[N,M] y) { y = Cos(x) }", "several of its sizes are free"),
        (
            "(float[N,3] x) => (float[N] y) { i = Constant<value = int64 {1}>() "
            "y = Gather<axis = 1>(x, i) }",
            "",
        ),
        (
            "(int64[N,3] i) => (float[N,3] y) <float[4] t> { y = Gather(t, i) }",
            None,
        ),
    ],
)
def test_which_kernels_are_searched(text: str, reason: str | None) -> None:
    found = [reason_against(kernel) for kernel in kernels(text).values()]
    assert found == ([] if reason is None else [reason])


def test_kernels_that_check_or_read_where_ids_say_are_not_searched() -> None:
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def checks(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
        for i in range(8):
            assert x[i] > T.float32(0), "negative"
            y[i] = x[i]

    @T.prim_func(s_tir=True)
    def looks_up(
        x: T.Buffer((8,), "float32"), k: T.Buffer((8,), "int64"), y: T.Buffer((8,), "float32")
    ):
        for i in range(8):
            y[i] = x[k[i]]

    @T.prim_func(s_tir=True)
    def results(
        x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32"), z: T.Buffer((8,), "float32")
    ):
        for i in range(8):
            y[i] = x[i]
            z[i] = x[i]

    assert reason_against(checks) == "it checks its operands"
    assert reason_against(looks_up) == "it reads where the elements of an operand say"
    assert reason_against(results) == "it has several results"


# ---------------------------------------------------------------------- artifacts


@pytest.mark.parametrize(("text", "shape"), [(CHAIN, (67,)), (NORMS, (16, 20))])
def test_searched_bodies_answer_at_their_sizes(
    text: str, shape: tuple[int, ...], made_up: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    with_bodies = searched.with_bodies

    def noted(kernel: Any, size: Any, bodies: dict[int, Any]) -> Any:
        used.extend(bodies)
        return with_bodies(kernel, size, bodies)

    monkeypatch.setattr(searched, "with_bodies", noted)
    plain, nothing = compiled(parse(text))
    artifact, found = compiled(parse(text), Tuning(trials=8, batches=(1, 64), meta_schedule=True))
    assert nothing is None
    assert (found["kernels"], found["measured"], used) == (1, 8, [1, 64])
    assert found["speedup"] == 2
    for size in SIZES:
        expected = plain.run(inputs(size, shape))
        np.testing.assert_array_equal(artifact.run(inputs(size, shape))["y"], expected["y"])


def test_a_kernel_without_free_sizes(made_up: list[Any]) -> None:
    text = CHAIN.replace("N,", "3,")
    artifact, found = compiled(parse(text), Tuning(trials=6, meta_schedule=True))
    assert list(found["gains"]) == ["fused_mul_erf_mul1_cos size=fixed"]
    plain, _ = compiled(parse(text))
    np.testing.assert_array_equal(artifact.run(inputs(3))["y"], plain.run(inputs(3))["y"])


def test_a_body_at_the_wrong_size_is_seen(
    made_up: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bodies = searched.with_bodies

    def swapped(kernel: Any, size: Any, bodies: dict[int, Any]) -> Any:
        return with_bodies(kernel, size, {64: bodies[7]})

    monkeypatch.setattr(searched, "with_bodies", swapped)
    tuning = Tuning(trials=8, batches=(7, 64), meta_schedule=True)
    with pytest.raises(VerificationError):
        compiled(parse(CHAIN), tuning, verify=True)


def test_reuse_without_measuring(made_up: list[Any], tmp_path: Path) -> None:
    cache = tmp_path / "t.db"
    options = dict(cache=cache, batches=(1, 64), meta_schedule=True)
    _, first = compiled(parse(CHAIN), Tuning(trials=8, **options))
    asked = len(made_up)
    before = cache.read_bytes()
    strict = dict(read_only=True, error_on_miss=True)
    _, again = compiled(parse(CHAIN), Tuning(**options, **strict))
    assert (again["measured"], again["gains"]) == (0, first["gains"])
    assert (len(made_up), cache.read_bytes()) == (asked, before)
    with pytest.raises(TuningMissError, match=r"meta-schedule fused_mul_erf_mul1_cos size=65 on"):
        compiled(parse(CHAIN), Tuning(**{**options, "batches": (64, 65)}, **strict))
    _, rest = compiled(parse(CHAIN), Tuning(trials=4, **options))
    assert rest["measured"] == 4  # goes on where it stopped
    _, unasked = compiled(parse(CHAIN), Tuning(cache=cache))
    assert unasked is None


def test_a_search_that_fails_leaves_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(kernel: Any, target: Any) -> None:
        raise RuntimeError("Check failed\n  of an invariant")

    monkeypatch.setattr(schedules, "_proposals", fails)
    options = dict(cache=tmp_path / "t.db", batches=(1, 64), meta_schedule=True)
    artifact, found = compiled(parse(CHAIN), Tuning(trials=100, **options))
    assert found["failed"] == {"fused_mul_erf_mul1_cos": "of an invariant"}
    assert (found["gains"], found["measured"]) == ({}, 2)  # that the default is as fast as itself
    plain, _ = compiled(parse(CHAIN))
    np.testing.assert_array_equal(artifact.run(inputs(64))["y"], plain.run(inputs(64))["y"])
    compiled(parse(CHAIN), Tuning(**options, error_on_miss=True))


def test_wrong_candidates_leave_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Isolated, request: Any) -> str:
        return "it computes something else"

    monkeypatch.setattr(Isolated, "_answer", wrong)
    _, found = compiled(parse(CHAIN), Tuning(trials=8, batches=(64,), meta_schedule=True))
    assert found["failed"] == {"fused_mul_erf_mul1_cos size=64": "it computes something else"}
    assert (found["gains"], found["measured"]) == ({}, 8)


# ------------------------------------------------------------------------ options


def test_the_search_gets_half_and_what_is_left() -> None:
    tuning = Tuning(seconds=60, trials=7, meta_schedule=True)
    assert (tuning.of_templates.seconds, tuning.of_templates.trials) == (30, 4)
    assert (tuning.less(10, 4).seconds, tuning.less(10, 4).trials) == (50, 3)
    assert tuning.less(100, 7).seconds == 0
    assert not Tuning(Path("t.db"), meta_schedule=True).of_templates.measures
    plain = Tuning(seconds=60)
    assert plain.of_templates is plain


def test_it_is_a_part_of_tuning() -> None:
    with pytest.raises(SpecError, match="say how long"):
        Tuning(meta_schedule=True)


def test_there_is_none_for_gpus(tmp_path: Path) -> None:
    tuning = Tuning(trials=1, meta_schedule=True)
    with pytest.raises(SpecError, match="CPUs only"):
        find("cuda:sm_80").compile(parse(CHAIN), tmp_path / "m.so", "error", print, tuning)
