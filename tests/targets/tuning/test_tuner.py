"""Which candidates are measured and which parameters are chosen; costs are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import SpecError, TuningMissError
from graphopt.latency import Latency
from graphopt.targets.cpu.gemm_family import Bf16GemmFamily, GemmFamily, GemmProblem
from graphopt.targets.cpu.kernels.bfloat16 import words_for
from graphopt.targets.cpu.kernels.panels import MAX_ROWS, GemmParams
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.tuning import tuner as tuning_module
from graphopt.targets.tuning.calls import calls_of
from graphopt.targets.tuning.family import _sources
from graphopt.targets.tuning.options import Tuning
from graphopt.targets.tuning.tuner import Tuner
from graphopt.testing import parse

HOST = CpuTarget.parse("")
FAMILY = GemmFamily()
SMALL = GemmProblem(5, 40, HOST.lanes, (1, 3))
OTHER = GemmProblem(4, 33, HOST.lanes, (2,))


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of candidates over the default's, one for each size measured, in turn."""
    left: list[float] = []

    def measured(
        calls: Mapping[str, Callable[[], object]], seconds: float, clock: object
    ) -> dict[str, Latency]:
        times = {"default": 1.0, "candidate": left.pop(0)}
        return {name: Latency(times[name], 0, 0, 1) for name in calls}

    monkeypatch.setattr(tuning_module, "interleaved", measured)
    return left


def tuner(tuning: Tuning) -> Tuner:
    return Tuner(tuning, HOST.llvm, "this machine")


WORDS = words_for(HOST.features, HOST.lanes)
FAMILIES = [FAMILY, *([Bf16GemmFamily(WORDS)] if WORDS else [])]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_candidate_computes_the_same(family: GemmFamily) -> None:
    default, candidates = family.default(SMALL), list(family.candidates(SMALL))
    assert len(set(candidates)) >= 3
    target = HOST.llvm
    for params in (candidates[0], candidates[-1]):
        for (base, expected), (call, output) in zip(
            calls_of(family, SMALL, default, target), calls_of(family, SMALL, params, target)
        ):
            base()
            call()
            np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
            assert np.abs(output).max() > 0


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("n", [1, 8, 40, 512, 1677])
def test_candidates_fit_the_registers(n: int, lanes: int) -> None:
    candidates = list(FAMILY.candidates(GemmProblem(8, n, lanes, (1,))))
    assert candidates
    registers = 32 if lanes == 16 else 16
    for params in candidates:
        assert params.rows * params.vectors + params.vectors < registers
        assert 1 <= params.rows <= MAX_ROWS
    far = list(FAMILY.candidates(GemmProblem(8, n, lanes, (1,), far=True)))
    assert far and all(params.vectors <= 3 for params in far)


def test_parameters_that_no_kernel_has() -> None:
    with pytest.raises(ValueError, match="1 to 16 rows, not 24"):
        GemmParams(16, 1, 24)


def test_the_default_is_taken_where_nothing_is_known() -> None:
    found = tuner(Tuning())
    found.tune(FAMILY, [SMALL])
    assert found.params(FAMILY, SMALL) == FAMILY.default(SMALL)
    assert (found.summary.problems, found.summary.known, found.summary.measured) == (1, 0, 0)


def test_the_fastest_is_chosen_and_kept(ratios: list[float], tmp_path: Path) -> None:
    ratios += [0.5, 0.5, 0.5, 0.5, *[0.9] * 100]
    first = tuner(Tuning(tmp_path / "t.db", trials=3))
    first.tune(FAMILY, [SMALL])
    others = [p for p in FAMILY.candidates(SMALL) if p != FAMILY.default(SMALL)]
    assert first.params(FAMILY, SMALL) == others[0]
    assert first.summary.measured == 3  # the default among them
    assert first.summary.speedup == pytest.approx(2)
    again = tuner(Tuning(tmp_path / "t.db", read_only=True, error_on_miss=True))
    again.tune(FAMILY, [SMALL])
    assert again.params(FAMILY, SMALL) == others[0]
    assert again.summary.measured == 0


def test_tuning_goes_on_where_it_stopped(ratios: list[float], tmp_path: Path) -> None:
    ratios += [0.9] * 100
    for _ in range(2):
        tuner(Tuning(tmp_path / "t.db", trials=2)).tune(FAMILY, [SMALL])
    every = [FAMILY.default(SMALL), *FAMILY.candidates(SMALL)]
    rest = tuner(Tuning(tmp_path / "t.db", trials=1000))
    rest.tune(FAMILY, [SMALL])
    assert rest.summary.measured == len(set(every)) - 4


def test_problems_take_turns(ratios: list[float]) -> None:
    ratios += [0.9] * 100
    order: list[str] = []
    progress = lambda done, total, problem: order.append(problem.split()[1])  # noqa: E731
    found = tuner(Tuning(trials=4, progress=progress))
    found.tune(FAMILY, [SMALL, OTHER, SMALL])
    assert order == ["k=5", "k=4"] * 2
    assert (found.summary.problems, found.summary.known) == (2, 2)


def test_a_lead_within_the_noise_is_none(ratios: list[float]) -> None:
    ratios += [0.99] * 100
    found = tuner(Tuning(trials=3))
    found.tune(FAMILY, [SMALL])
    assert found.params(FAMILY, SMALL) == FAMILY.default(SMALL)
    assert found.summary.speedup == 1


def test_a_lead_must_be_seen_twice(ratios: list[float]) -> None:
    ratios += [0.5, 0.5, 1.2, 1.2, *[1.0] * 100]
    found = tuner(Tuning(trials=3))
    found.tune(FAMILY, [SMALL])
    assert found.params(FAMILY, SMALL) == FAMILY.default(SMALL)
    assert found.summary.measured == 3


def test_no_time_no_measurement() -> None:
    found = tuner(Tuning(seconds=0))
    found.tune(FAMILY, [SMALL])
    assert found.summary.measured == 0


def test_a_miss_can_be_an_error(tmp_path: Path) -> None:
    tuner(Tuning(tmp_path / "t.db", trials=1)).tune(FAMILY, [OTHER])
    with pytest.raises(TuningMissError, match="gemm-float32 k=5 n=40"):
        tuner(Tuning(tmp_path / "t.db", error_on_miss=True)).tune(FAMILY, [OTHER, SMALL])


def test_the_code_of_the_template_is_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner(Tuning(tmp_path / "t.db", trials=1)).tune(FAMILY, [SMALL])
    monkeypatch.setattr(GemmFamily, "version", lambda self: "another")
    with pytest.raises(TuningMissError):
        tuner(Tuning(tmp_path / "t.db", error_on_miss=True)).tune(FAMILY, [SMALL])


@pytest.mark.parametrize(
    "file", ["cpu/kernels/gemm", "cpu/kernels/rows", "kernels/epilogue", "relax/scratch"]
)
def test_all_code_that_decides_the_kernel_s_is_part_of_its_version(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of what is imported for a number, and by whatever is imported."""
    read = Path.read_text

    def changed(path: Path) -> str:
        return read(path) + "# another\n" * path.match(f"targets/{file}.py")

    before = GemmFamily().version()
    monkeypatch.setattr(Path, "read_text", changed)
    _sources.cache_clear()
    assert GemmFamily().version() != before
    monkeypatch.undo()
    _sources.cache_clear()
    assert GemmFamily().version() == before


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs its file"):
        Tuning(error_on_miss=True)
    with pytest.raises(SpecError, match="cannot take measurements"):
        Tuning(tmp_path / "t.db", trials=3, read_only=True)


def test_only_code_that_runs_here_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CpuTarget("x86-64", HOST.machine)
    monkeypatch.setattr(CpuTarget, "parse", lambda argument: plain)
    graph = parse("(float[N,3] x) => (float[N,2] y) <float[3,2] w> { y = MatMul(x, w) }")
    with pytest.raises(SpecError, match="does not run here"):
        HOST.compile(graph, tmp_path / "m.so", "error", lambda stage: None, Tuning(trials=1))
