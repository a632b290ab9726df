"""A recurrent layer without samples is an error in ONNX Runtime too, and not the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from graphopt.errors import InputError
from graphopt.ir import onnx_io
from graphopt.targets.empty_sequences import guarded
from graphopt.targets.portable import OnnxModel
from graphopt.testing import parse

PICKED = """(float[N,3,4] x, int64[N] count) => (float[3,1,M,8] y)
    <float[1,24,4] wx, float[1,24,8] r, int64 zero = {0}> {
    has = Greater(count, zero) k = NonZero(has) rows = Transpose(k) s = GatherND(x, rows)
    t = Transpose<perm=[1,0,2]>(s) c = GatherND(count, rows) n = Cast<to=6>(c)
    y, last = GRU<hidden_size=8>(t, wx, r, , n) }"""
ALL = """(float[3,N,4] x, int32[N] n) => (float[3,1,N,8] y) <float[1,24,4] wx, float[1,24,8] r> {
    y, last = GRU<hidden_size=8>(x, wx, r, , n) }"""
NO_LENGTHS = PICKED.replace("(t, wx, r, , n)", "(t, wx, r)")


def test_no_samples_are_an_error(tmp_path: Path) -> None:
    proto = onnx_io.to_proto(parse(PICKED))
    convert_model_to_external_data(proto, location="weights", size_threshold=0)
    onnx.save(proto, tmp_path / "m.onnx")
    model = OnnxModel(tmp_path / "m.onnx")
    x = np.ones((2, 3, 4), np.float32)
    assert model.run({"x": x, "count": np.array([0, 2])})["y"].shape == (3, 1, 1, 8)
    with pytest.raises(InputError, match="is given no samples"):
        model.run({"x": x, "count": np.array([0, -1])})


@pytest.mark.parametrize("text", [ALL, NO_LENGTHS])
def test_others_are_run_as_they_are(text: str) -> None:
    assert guarded(onnx_io.to_proto(parse(text))) is None
