"""A small model that every verb can work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.ir import onnx_io
from graphopt.testing import parse

CLICKS = """clicks (int64[N,3] ids, float[N,4] dense) => (float[N,1] score)
<float[100,8] users, float[12,1] w, float[1] b, int64 zero = {0}> {
    user = Gather<axis=1>(ids, zero)
    same = Identity(user)
    e = Gather(users, same)
    x = Concat<axis=1>(e, dense)
    z = Gemm(x, w, b)
    score = Sigmoid(z)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file in a folder of its own."""
    path = tmp_path / "clicks.onnx"
    onnx_io.save(parse(CLICKS), path)
    return path


@pytest.fixture
def flat_model(tmp_path: Path) -> Path:
    """The same model with scores of shape [N] instead of [N, 1]."""
    text = CLICKS.replace("float[N,1] score", "float[N] score")
    text = text.replace("score = Sigmoid(z)", "column = Sigmoid(z)  score = Squeeze(column)")
    path = tmp_path / "flat.onnx"
    onnx_io.save(parse(text), path)
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Inputs for it."""
    path = tmp_path / "inputs.npz"
    np.savez(path, ids=np.full((2, 3), 7), dense=np.ones((2, 4), np.float32))
    return path
