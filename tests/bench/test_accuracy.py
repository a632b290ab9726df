"""Who is on the front of size, time and drop, and what is said of tools that fail."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime.quantization")
BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import accuracy  # noqa: E402
import quantizers  # noqa: E402

from graphopt.accuracy.datasets import in_batches  # noqa: E402
from graphopt.accuracy.judge import Judge  # noqa: E402
from graphopt.accuracy.metrics import find  # noqa: E402
from graphopt.ir import onnx_io  # noqa: E402
from graphopt.targets.portable import OnnxModel  # noqa: E402
from graphopt.testing import parse, random_inputs  # noqa: E402


def row(size: int, time: float, drop: float) -> dict[str, Any]:
    return {"bytes": size, "time": time, "drop": {"drop": drop}}


def beaten(rows: dict[str, Any]) -> dict[str, list[str]]:
    accuracy.compare(rows, least_drop=0.0001)
    return {name: found["beaten_by"] for name, found in rows.items() if "bytes" in found}


def test_who_beats_whom() -> None:
    rows = {
        "graphopt 0.001": row(100, 10.0, 0.0005),
        "graphopt 0.0001": row(120, 10.0, 0.0),
        "larger": row(300, 10.1, 0.0005),
        "smaller": row(90, 20.0, 0.002),
        "better": row(90, 9.0, 0.0001),
        "failed": {"failure": "no"},
        "float32": {"us": 12.0},
    }
    assert beaten(rows) == {
        "graphopt 0.001": ["better"],
        "graphopt 0.0001": ["better"],
        "larger": ["graphopt 0.001", "graphopt 0.0001"],
        "smaller": [],
        "better": [],
    }


def test_what_the_rows_cannot_tell_apart_is_equal() -> None:
    """A time 2 % apart, and drops below the smallest budget."""
    rows = {"graphopt 0.001": row(100, 10.0, -0.001), "other": row(100, 10.2, 0.00005)}
    assert beaten(rows) == {"graphopt 0.001": [], "other": []}


@pytest.fixture
def chooser(tmp_path: Path) -> Judge:
    graph = parse(
        """(float[N,16] x) => (float[N,4] y) <float[16,32] w, float[32,4] v> {
            h = MatMul(x, w)
            r = Relu(h)
            y = MatMul(r, v)
        }"""
    )
    onnx_io.save(graph, tmp_path / "model.onnx")
    data = in_batches(random_inputs(graph, {"N": 300}))
    return Judge(OnnxModel(tmp_path / "model.onnx"), data, find("mean-error"))


def test_another_tool_and_one_that_fails(
    chooser: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.onnx"
    made = quantizers.quantized("ORT dynamic", source, tmp_path / "small.onnx", chooser)
    assert 0 < chooser.drop(made) < 0.5

    def dies(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def raises(*_: object) -> None:
        raise ValueError("not this model")

    monkeypatch.setattr(quantizers, "QUANTIZERS", {"dies": dies, "raises": raises})
    with pytest.raises(RuntimeError, match="it died"):
        quantizers.quantized("dies", source, tmp_path / "a.onnx", chooser)
    with pytest.raises(RuntimeError, match="ValueError not this model"):
        quantizers.quantized("raises", source, tmp_path / "b.onnx", chooser)


def test_a_network_of_openvino_is_timed_with_its_tensors_bound(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    graph, path = parse("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"), tmp_path / "a.onnx"
    onnx_io.save(graph, path)
    feeds = random_inputs(graph, {"N": 3})
    bound = quantizers.call(quantizers.OpenVinoModel.of(path), feeds)
    bound()


def test_a_run_of_some_tools_keeps_what_is_known_of_others() -> None:
    old = [{"model": "a", "bytes": 9, "variants": {"x": {"bytes": 1}, "y": {"bytes": 2}}}]
    new = [
        {"model": "a", "bytes": 9, "variants": {"y": {"bytes": 3}}},
        {"model": "b", "bytes": 9, "variants": {}},
    ]
    found = accuracy.merged(old, new)
    assert [result["model"] for result in found] == ["a", "b"]
    assert found[0]["variants"] == {"x": {"bytes": 1}, "y": {"bytes": 3}}


def test_times_are_shown_if_they_were_measured() -> None:
    def line(found: dict[str, Any]) -> str:
        rows = {"ORT dynamic": found, "NNCF": {"failure": "no"}, "float32": {"time": 1.0}}
        results = [{"model": "a", "bytes": 100, "variants": rows}]
        accuracy.compare(rows, least_drop=0.0001)
        accuracy.show(results)
        return accuracy.markdown(results).splitlines()[2]

    noted = {**row(50, 2.0, 0.01), "drop": {"drop": 0.01, "interval": [0.0, 0.02]}}
    noted["time_1"] = 3.0
    assert line(noted) == "| ONNX Runtime, dynamic int8 | 1 | 0.50 | 0.0100 | 2.00 | 3.00 |"
    del noted["time"], noted["time_1"], noted["beaten_by"]
    assert line(noted) == "| ONNX Runtime, dynamic int8 | 1 | 0.50 | 0.0100 | ? | ? |"


def test_a_line_for_each_model_and_where_others_are_ahead() -> None:
    ahead = {
        "graphopt 0.001": row(10, 0.5, 0.0009) | {"time_1": 1.0},
        "graphopt 0.0001": row(20, 0.6, 0.00004) | {"time_1": 1.25},
        "NNCF": row(30, 2.0, 0.0),
    }
    behind = {name: dict(found) for name, found in ahead.items()}
    behind["ORT static"] = row(19, 0.5, 0.0)
    half = {"graphopt 0.001": row(10, 0.5, 0.0009)}
    named = {"a": ahead, "b": behind, "c": half}
    results = [{"model": n, "bytes": 100, "variants": rows} for n, rows in named.items()]
    for result in results:
        accuracy.compare(result["variants"], least_drop=0.0001)  # type: ignore[arg-type]
    lines = accuracy.markdown(results).splitlines()
    assert "| `a` | 0.10 / 0.20 | 0.0009 / 0.0000 | 0.50 / 0.60 | 1.00 / 1.25 |" in lines
    assert "| `c` | 0.10 / ? | 0.0009 / ? | 0.50 / ? | ? / ? |" in lines
    assert lines[-1] == (
        "Of 3 models, ours are on or beyond the Pareto front of the other tools on all "
        "but b at 0.0001 (behind ORT static)."
    )
    assert accuracy.front(results[:1]).endswith(
        "Of 1 models, ours are on or beyond the Pareto front of the other tools on all."
    )
