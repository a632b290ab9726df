"""Engines that only benches measure give the answers of ONNX Runtime."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from other_peers import PEERS  # noqa: E402

from graphopt.ir import onnx_io  # noqa: E402
from graphopt.peers import bind, open_peer  # noqa: E402
from graphopt.testing import parse, random_inputs, run_onnxruntime  # noqa: E402

MODEL = """(int64[N] ids, float[N,3] x) => (float[N,4] y, float[N,4] z)
<float[9,4] table, float[3,4] w> {
    e = Gather(table, ids) h = MatMul(x, w) y = Add(e, h) z = Relu(y)
}"""


@pytest.mark.parametrize("name", PEERS)
def test_answers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (peer,) = PEERS[name]
    if importlib.util.find_spec(peer.package) is None:
        pytest.skip(f"{peer.package} is not installed")
    if name == "torch":
        import torch

        # What it would generate is PyTorch's business, and takes half a minute.
        monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    graph = parse(MODEL)
    onnx_io.save(graph, tmp_path / "m.onnx")
    opened = open_peer(peer, tmp_path / "m.onnx")
    for size in (3, 5):
        feeds = random_inputs(graph, {"N": size}, seed=size)
        found = bind(peer, opened, feeds)()
        expected = run_onnxruntime(graph, feeds).values()
        for array, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)
