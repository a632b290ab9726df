"""The families of CPU kernels: what is tuned of a graph, and what candidates compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt import Tuning
from graphopt.ir.graph import Graph
from graphopt.targets.cpu import lookup_family, tuned
from graphopt.targets.cpu.gemm_family import GemmProblem, Int8GemmFamily
from graphopt.targets.cpu.kernels.embedding_bag import PoolingParams
from graphopt.targets.cpu.kernels.int8_gemm import VNNI_LANES, int8_params
from graphopt.targets.cpu.kernels.rows import LookupParams
from graphopt.targets.cpu.lookup_family import (
    LookupFamily,
    LookupProblem,
    PoolingFamily,
    PoolingProblem,
)
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.tuning import tuner as tuner_module
from graphopt.targets.tuning.calls import calls_of
from graphopt.targets.tuning.tuner import Tuner
from graphopt.testing import parse

HOST = CpuTarget.parse("")
TABLES = """(int64[N] user, int32[N,7] past, int64[M] ids, int64[N] starts, float[N,40] x)
    => (float[N,64] u, float[N,128] p, float[N,64] c, float[N,40] y, float[N,4] s)
<float[2000,64] users, float[600,128] items, float[40,4] small, float[40,40] w> {
    u = Gather(users, user)
    p = graphopt.EmbeddingBag<mode="mean">(items, past)
    c = graphopt.EmbeddingBag(users, ids, starts)
    y = MatMul(x, w)
    s = Gather(small, user)
}"""


def names(graph: Graph) -> list[tuple[str, Any]]:
    return [(family.name, problem) for _, (family, problem) in tuned._tasks(graph, (1, 8))]


def test_what_is_tuned() -> None:
    graph = HOST.legalize(parse(TABLES))
    assert names(graph) == [
        ("lookup", LookupProblem(2000, 64, "float32", "int64")),
        ("pooled-lookup", PoolingProblem(600, 128, "int32", 7, "mean")),
        ("pooled-lookup", PoolingProblem(2000, 64, "int64", 20, "sum")),
        ("gemm-float32", GemmProblem(40, 40, HOST.lanes, (1, 8))),
    ]


def test_layers_in_fewer_bits() -> None:
    """By vectors: tiles have nothing to tune."""
    target = CpuTarget.parse("cooperlake").computing("bf16")
    graph = target.legalize(
        parse("""(float[N,64] x) => (float[N,64] y, float[N,64] z)
        <int8[64,64] c, float[64] s, float scale = {0.1}, uint8 zero = {128}, float[64,64] v> {
            w = DequantizeLinear<axis=1>(c, s)
            q = QuantizeLinear(x, scale, zero)
            d = DequantizeLinear(q, scale, zero)
            y = MatMul(d, w)
            z = MatMul(x, v)
        }""")
    )
    assert [name for name, _ in names(graph)] == ["gemm-int8", "gemm-bfloat16"]


def test_large_tables_are_one_problem() -> None:
    a, b = (LookupProblem.of(rows, 64, "float32", "int64") for rows in (10**6, 10**7))
    assert a == b
    assert 4 * a.rows * a.width == 64 << 20


@pytest.mark.parametrize(
    ("family", "problem"),
    [
        (LookupFamily(), LookupProblem(300, 24, "float32", "int64")),
        (PoolingFamily(), PoolingProblem(300, 130, "int32", 3, "mean")),
        (PoolingFamily(), PoolingProblem(300, 24, "int64", 3, "sum")),
    ],
)
def test_candidates_compute_what_the_default_does(
    family: Any, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup_family, "_LOOKUPS", 60)
    candidates = dict.fromkeys(family.candidates(problem))
    assert len(candidates) >= 5
    results = []
    for params in (family.default(problem), *candidates):
        assert family.parse(vars(params)) == params
        ((call, found),) = calls_of(family, problem, params, HOST.llvm)
        call()
        results.append(found.copy())
    assert results[0].any()
    for found in results[1:]:
        np.testing.assert_array_equal(found, results[0])


@pytest.mark.parametrize(("lanes", "registers"), [(VNNI_LANES, 32), (8, 16)])
def test_candidates_of_8_bits_fit_the_registers(lanes: int, registers: int) -> None:
    """The code itself takes AVX512-VNNI or AVX2."""
    family, problem = Int8GemmFamily(), GemmProblem(70, 200, lanes, (1, 64))
    candidates = list(family.candidates(problem))
    assert family.default(problem) == int8_params(200, lanes=lanes)
    assert len(candidates) > 3
    for params in candidates:
        assert params.lanes == lanes
        assert params.rows * params.vectors + params.vectors < registers
    trials = family.trials(problem, candidates[0])
    assert [trial.output for trial in trials] == [((1, 200), "float32"), ((64, 200), "float32")]
    assert family.kernel(problem, candidates[0]) is not None


def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit is one for all of them."""
    order: list[str] = []
    monkeypatch.setattr(tuner_module, "on_cpu", lambda *_: [0.5])
    progress = lambda done, total, problem: order.append(problem.split()[0])  # noqa: E731
    found = Tuner(Tuning(trials=6, progress=progress), HOST.llvm, "this")
    graph = HOST.legalize(parse(TABLES))
    tuned.choose_params(graph, found)
    assert order[:4] == ["lookup", "pooled-lookup", "pooled-lookup", "gemm-float32"]
    assert (found.summary.measured, found.summary.known, len(order)) == (6, 4, 6)


def test_chosen_parameters_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"lookup": LookupParams(16), "pooled-lookup": PoolingParams(4, 2)}
    real = Tuner.params

    def params(self: Tuner, family: Any, problem: Any) -> Any:
        return chosen.get(family.name) or real(self, family, problem)

    monkeypatch.setattr(Tuner, "params", params)
    graphopt.compile(parse(TABLES), output=tmp_path / "m.gopt", tuning=Tuning())
    report = graphopt.load(tmp_path / "m.gopt").report
    assert report["facts"]["tuning"]["problems"] == 4
