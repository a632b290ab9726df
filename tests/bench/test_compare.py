"""The comparison with other engines: its models are what they say, its means are right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import compare  # noqa: E402
import production  # noqa: E402
from isolation import Lost, in_a_process  # noqa: E402

from graphopt.measuring import roofline  # noqa: E402
from graphopt.testing import random_inputs, run_onnxruntime  # noqa: E402


@pytest.fixture(autouse=True)
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(production, "ROWS", 50)


@pytest.mark.parametrize("name", production.MODELS)
def test_production_models_run_and_depend_on_their_inputs(name: str) -> None:
    graph = production.MODELS[name][0]()
    outputs = [run_onnxruntime(graph, random_inputs(graph, {"N": 3}, seed)) for seed in (0, 1)]
    for output, other in zip(*(found.values() for found in outputs)):
        assert output.shape[0] == 3
        assert np.isfinite(output).all()
        assert np.abs(output - other).max() > 1e-4


def test_one_model_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "roofline", lambda: roofline.Roofline(1e9, (1e9,) * 4))
    made, _ = production.MODELS["two_tower"]
    monkeypatch.setitem(production.MODELS, "two_tower", (made, 2))
    found = compare.measure(tmp_path, "two_tower", [1, 2, 4], "onnxruntime", 0)
    assert found["model"] == "two_tower"
    assert [row["batch"] for row in found["rows"]] == [1, 2]
    assert all(row["differences"]["onnxruntime"] < 1e-5 for row in found["rows"])
    assert all(row["floor"] > 0 for row in found["rows"])
    assert found["loop_bags"] == 0
    compare.show([found], [1, 2])


def _result(name: str, ratio: float) -> dict:
    row = {"batch": 1, "best": "a", "ratios": {"a": ratio, "slow": 9.0}}
    return {"model": name, "rows": [row]}


def test_summary() -> None:
    results = [_result("x", 4.0), _result("y", 0.25), {"model": "z", "failure": "exit code 1"}]
    assert compare.summary(results, [1, 8]) == {
        "1": {
            "geometric_mean": 1.0,
            "smallest": {"model": "y", "ratio": 0.25},
            "slower": 1,
            "models": 2,
        }
    }


def test_tables_for_the_readme() -> None:
    results = [_result("x", 4.0), _result("y", 0.25), {"model": "z", "failure": "exit code 1"}]
    results.append(_result("bags", 100.0) | {"loop_bags": 3})
    versions = {"onnxruntime": "1.2", "openvino": "3.4", "numpy": "2"}
    results[1]["machine"] = {"cpu": "Some CPU", "date": "2026-01-02", "versions": versions}
    results[0]["rows"][0]["ratios"]["openvino-bf16"] = 1.5
    assert compare.markdown({"a": {"results": results}, "b": {"results": results}}).split("\n\n")[
        2:
    ] == [
        "b: Some CPU, 2026-01-02, ONNX Runtime 1.2, OpenVINO 3.4.",
        """\
| batch | all models | without 1 with `Loop` bags | smallest | without bags, over OpenVINO in bf16 |
| ---: | ---: | ---: | ---: | ---: |
| 1 | 4.6 | 1.0 | 0.25 (y) | 1.5 |""",
    ]


def test_the_table_of_other_compilers() -> None:
    results = [_result("x", 4.0), _result("y", 1.0), {"model": "z", "failure": "exit code 1"}]
    results[0]["rows"][0]["ratios"] = {"tvm": 400.0, "torch.compile": 2.5}
    results[1]["rows"][0]["ratios"] = {"torch.compile": 10.0}
    versions = {"torch": "1.2", "apache-tvm": "3.4"}
    results[1]["machine"] = {"cpu": "Some CPU", "date": "2026-01-02", "versions": versions}
    assert (
        compare.compilers_markdown({"results": results})
        == """\
Some CPU, 2026-01-02, PyTorch 1.2, TVM 3.4.

| model | torch.compile, batch 1 | TVM, batch 1 |
| --- | ---: | ---: |
| `x` | 2.5 | 400 |
| `y` | 10.0 |  |
| `z` |  |  |
| geometric mean | 5.0 | 400 |"""
    )


def test_failures_are_rows(tmp_path: Path) -> None:
    found = in_a_process(compare.__file__, str(tmp_path), "--only", "absent")
    assert isinstance(found, Lost) and "no such file" in found.reason
