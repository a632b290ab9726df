"""Benchmarks of small models: what is measured, what is left out; no figure is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import api
from graphopt.errors import InputError, SpecError
from graphopt.ir import onnx_io
from graphopt.latency import Latency
from graphopt.measuring import peers
from graphopt.measuring.benchmark import OURS, Benchmark, Row, bench, left_out_lines
from graphopt.measuring.peers import Feeds, Peer
from graphopt.testing import parse

DENSE = """(float[N,3] x) => (float[N,2] y) <float[3,2] w> { y = MatMul(x, w) }"""
BOTH = {"onnxruntime", "onnxruntime-bound"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "dense.onnx"
    onnx_io.save(parse(DENSE), path)
    return path


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    graphopt.compile(model, output=model.with_suffix(".gopt"))
    return model.with_suffix(".gopt")


def test_a_model_is_compiled_and_measured(model: Path) -> None:
    found = bench(model, batches=(1, 4), peers="onnxruntime", seconds=0)
    assert [row.batch for row in found.rows] == [1, 4]
    for row in found.rows:
        assert row.latencies.keys() == {OURS} | BOTH
        assert all(d < 1e-5 for d in row.differences.values())
        assert row.best() in BOTH
        assert row.best("bf16") is None
    assert found.machine["versions"]["onnxruntime"]


def test_an_artifact_brings_its_portable_model(artifact: Path) -> None:
    found = bench(artifact, batches=(2,), peers="onnxruntime", seconds=0)
    assert found.rows[0].latencies.keys() == {OURS} | BOTH


def test_inputs_of_the_caller(artifact: Path, model: Path) -> None:
    feeds = {"x": np.ones((5, 3), np.float32)}
    given = bench(
        artifact, source=model, batches=(5,), peers="onnxruntime", seconds=0, inputs=[feeds]
    )
    assert given.rows[0].batch == 5
    with pytest.raises(SpecError, match="1 sets of inputs for 2 batch sizes"):
        bench(artifact, batches=(1, 2), inputs=[feeds])


def test_json(artifact: Path) -> None:
    found = bench(artifact, batches=(1,), peers="onnxruntime", seconds=0).to_json()
    assert json.loads(json.dumps(found))["left_out"] == {}
    assert found["rows"][0]["ratios"].keys() == BOTH


def test_ratios_and_the_best() -> None:
    times = {OURS: 10, "a": 20, "b": 15, "half": 5}
    latencies = {name: Latency(time, time, time, 1) for name, time in times.items()}
    precisions = {**dict.fromkeys(times, "fp32"), "half": "bf16"}
    row = Row(1, latencies, precisions, {})
    assert row.best() == "b"
    assert row.best("bf16") == "half"
    assert row.ratio("a") == 2


def _bench_with(monkeypatch: pytest.MonkeyPatch, artifact: Path, *others: Peer) -> Benchmark:
    monkeypatch.setattr(peers, "ENGINES", {**peers.ENGINES, "other": others})
    return bench(artifact, batches=(1,), peers="onnxruntime,other", seconds=0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, artifact: Path) -> None:
    missing = Peer("other", "no_such_package", "fp32", lambda path: lambda feeds: lambda: [])
    found = _bench_with(monkeypatch, artifact, missing)
    assert "pip install no_such_package" in found.left_out["other"]
    assert found.rows[0].latencies.keys() == {OURS} | BOTH


def test_a_peer_that_refuses(monkeypatch: pytest.MonkeyPatch, artifact: Path) -> None:
    def opened(path: Path) -> peers.Callable[[Feeds], peers.Bound]:
        raise RuntimeError("no such\nop")

    def bound(feeds: Feeds) -> peers.Bound:
        raise RuntimeError("bad shape")

    refusing = Peer("a", "numpy", "fp32", opened)
    picky = Peer("b", "numpy", "fp32", lambda path: bound)
    left_out = _bench_with(monkeypatch, artifact, refusing, picky).left_out
    assert left_out == {
        "a": "refuses the model: no such op",
        "b at batch 1": "refuses the model: bad shape",
    }


def test_a_reason_is_told_once() -> None:
    found = {"a at batch 1": "no such op", "b": "too slow", "a at batch 8": "no such op"}
    assert left_out_lines(found) == [
        "left out: a at batch 1, a at batch 8: no such op",
        "left out: b: too slow",
    ]


def test_a_peer_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, artifact: Path) -> None:
    monkeypatch.setattr(peers, "PATIENCE", -1.0)
    slow = Peer("slow", "numpy", "fp32", lambda path: lambda feeds: lambda: [np.zeros(2)])
    found = bench(artifact, batches=(1,), peers="slow", others={"slow": (slow,)}, seconds=0)
    assert found.left_out == {"slow at batch 1": "takes 0.0 s a call"}


def test_errors_are_relative_to_the_first_exact_peer(
    monkeypatch: pytest.MonkeyPatch, artifact: Path
) -> None:
    wide = np.full((1, 2), 4, np.float32)
    exact = Peer("exact", "numpy", "fp32", lambda path: lambda feeds: lambda: [wide])
    rough = Peer("rough", "numpy", "bf16", lambda path: lambda feeds: lambda: [wide + 1])
    others = {"two": (rough, exact)}
    row = bench(artifact, batches=(1,), peers="two", others=others, seconds=0).rows[0]
    assert (row.errors["exact"], row.errors["rough"]) == (0, 0.25)
    assert row.errors[OURS] > 0


def test_a_peer_with_another_answer(monkeypatch: pytest.MonkeyPatch, artifact: Path) -> None:
    flat = Peer("flat", "numpy", "fp32", lambda path: lambda feeds: lambda: [np.zeros(2)])
    found = _bench_with(monkeypatch, artifact, flat)
    assert found.rows[0].differences["flat"] == float("inf")


def test_a_fixed_batch_is_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    onnx_io.save(parse(DENSE.replace("N,", "1,")), path)
    found = bench(path, batches=(1, 8), peers="onnxruntime", seconds=0)
    assert [row.batch for row in found.rows] == [1]
    assert found.left_out == {"batch 8": "the model has a fixed batch size"}


def test_batches_that_the_model_refuses(monkeypatch: pytest.MonkeyPatch, artifact: Path) -> None:
    def refuse(*args: object) -> None:
        raise InputError("20 positions, please")

    monkeypatch.setattr(api, "random_inputs", refuse)
    with pytest.raises(InputError, match="no batch size can be measured: 20 positions, please"):
        bench(artifact, batches=(1,), peers="onnxruntime", seconds=0)


def test_unknown_peer() -> None:
    with pytest.raises(SpecError, match="there are: onnxruntime, openvino"):
        peers.find("onnxruntme")
    assert [p.name for p in peers.find("openvino, onnxruntime,openvino")][:2] == [
        "openvino",
        "openvino-bf16",
    ]


def test_an_input_without_axes_gets_none(tmp_path: Path) -> None:
    rows = "(float x) => (float[1] y) <int64[1] first = {0}> { y = Unsqueeze(x, first) }"
    onnx_io.save(parse(rows), tmp_path / "m.onnx")
    for peer in peers.find("onnxruntime"):
        run = peers.bind(peers.open_peer(peer, tmp_path / "m.onnx"), {"x": np.array(2, np.float32)})
        assert run()[0].shape == (1,), peer.name


@pytest.mark.skipif(
    peers.importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
def test_openvino(artifact: Path, model: Path) -> None:
    found = bench(artifact, source=model, batches=(1, 3), peers="openvino", seconds=0)
    assert found.left_out == {}
    for row in found.rows:
        assert row.differences["openvino"] < 1e-5
        assert row.best() == "openvino"
        assert row.best("bf16") == "openvino-bf16"
