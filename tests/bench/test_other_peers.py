"""Engines that only benches measure give the answers of ONNX Runtime."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import other_peers  # noqa: E402

from graphopt.ir import onnx_io  # noqa: E402
from graphopt.measuring.peers import Unavailable, bind, open_peer  # noqa: E402
from graphopt.testing import parse, random_inputs, run_onnxruntime  # noqa: E402

MODEL = """(int64[N] ids, float[N,3] x) => (float[N,4] y, float[N,4] z)
<float[9,4] table, float[3,4] w> {
    e = Gather(table, ids) h = MatMul(x, w) y = Add(e, h) z = Relu(y)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx_io.save(parse(MODEL), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def installed(name: str) -> str:
    (peer,) = other_peers.PEERS[name]
    if importlib.util.find_spec(peer.package) is None:
        pytest.skip(f"{peer.package} is not installed")
    return name


@pytest.mark.parametrize("name", other_peers.PEERS)
def test_answers(name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = other_peers.COMPILERS[installed(name)]
    if name == "torch":
        import torch

        # What it would generate is PyTorch's business, and takes half a minute.
        monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    graph = parse(MODEL)
    for size in (3, 5):
        feeds = random_inputs(graph, {"N": size}, seed=size)
        found = compiler(model, feeds)()
        expected = run_onnxruntime(graph, feeds).values()
        for array, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)


def test_the_first_attempt_is_a_process_of_its_own(model: Path) -> None:
    (peer,) = other_peers.PEERS[installed("tvm")]
    bound = open_peer(peer, model)
    feeds = random_inputs(parse(MODEL), {"N": 2}, seed=0)
    assert len(bind(bound, feeds)()) == 2
    with pytest.raises(Unavailable, match="refuses the model: 'ids'"):
        bind(bound, {"x": feeds["x"]})


def test_an_attempt_has_limited_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_peers, "LIMIT", 0.01)
    (peer,) = other_peers.PEERS[installed("tvm")]
    with pytest.raises(Unavailable, match="no answer in"):
        bind(open_peer(peer, model), {})
