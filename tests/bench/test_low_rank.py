"""The bench of low ranks: what it plants has them, and what is found is counted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import low_rank  # noqa: E402
import production  # noqa: E402

import graphopt  # noqa: E402
from graphopt.ir import onnx_io  # noqa: E402


def test_layers_get_the_rank_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(production, "ROWS", 50)
    graph = production.two_tower(dim=16)
    before = {v.const.shape: v.const.std() for v in graph.constants() if v.const is not None}
    ranks = low_rank.planted(graph)
    assert ranks == {(208, 512): 26, (512, 256): 32, (256, 128): 16}
    for value in graph.constants():
        if value.const is not None and value.const.shape in ranks:
            values = np.linalg.svd(value.const, compute_uv=False)
            rank = ranks[value.const.shape]  # type: ignore[index]
            assert values[rank] < 0.05 * values[rank - 1]
            assert value.const.std() == pytest.approx(before[value.const.shape], rel=0.2)
    onnx_io.save(graph, tmp_path / "model.onnx")
    data = low_rank.clicks(graph, tmp_path / "model.onnx", 40)
    assert data.rows == 40
    assert data.labels is not None and set(data.labels) <= {0.0, 1.0}


def test_interactions_get_the_rank_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(production, "ROWS", 50)
    graph = production.xdeepfm(dim=4, maps=(160, 128))
    before = sorted(v.const.shape for v in graph.constants() if v.const is not None)
    ranks = low_rank.planted(graph)
    assert {s: r for s, r in ranks.items() if len(s) == 3} == {(26, 26, 160): 20, (80, 26, 128): 16}
    assert sorted(v.const.shape for v in graph.constants() if v.const is not None) == before
    for value in graph.constants():
        if value.const is not None and value.const.ndim == 3 and value.const.shape[0] == 160:
            values = np.linalg.svd(value.const[:, :, 0], compute_uv=False)
            assert values[20] < 0.05 * values[19]
    fused = graphopt.optimize(graph)
    assert [n.op for n in fused.nodes].count("graphopt::CompressedInteraction") == 2


def test_what_was_found_is_counted() -> None:
    taken = {
        "factorize-low-rank": {"rank 128": 2, "rank 32": 1},
        "factorize-tensors": {"CP rank 32": 2, "CP rank 8": 1},
        "quantize-weights": {"int8": 3},
    }
    assert low_rank.ranks_found({"taken": taken}) == ["1 x 8", "3 x 32", "2 x 128"]
    assert low_rank.ranks_found({"taken": {}}) == []


def test_a_line_for_each_model() -> None:
    result = {
        "model": "m",
        "taken": {"factorize-tensors": {"CP rank 8": 2}},
        "constant_bytes": [200, 50],
        "held_out": {"drop": 0.00051},
        "rows": [
            {"batch": 1, "us": {"float32": 30.0, "compressed": 20.0}},
            {"batch": 64, "us": {"float32": 90.0, "compressed": 9.0}},
        ],
    }
    assert low_rank.markdown({"results": [result]}).splitlines() == [
        "| model | ranks found | size | drop | faster at 1 | faster at 64 |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| `m` | 2 x 8 | 0.25 | 0.0005 | 1.5 | 10.0 |",
    ]
