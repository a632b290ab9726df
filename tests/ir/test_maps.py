"""Maps of scores become tensors of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.errors import UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.measuring.benchmark import bench
from graphopt.targets.portable import OnnxModel

LABELS = ["classlabels_int64s=[-2,3,10]", 'classlabels_strings=["a","b","c"]']


def model(labels: str, rest: str = "") -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (float[N,3] x) => (float[N,3] y, float[N,3] z) {{
        y = Softmax<axis=1>(x) z = ai.onnx.ml.ZipMap<{labels}>(y) {rest} }}"""
    )
    proto.graph.output[1].type.Clear()
    maps = proto.graph.output[1].type.sequence_type.elem_type.map_type
    maps.key_type = 7 if "int64" in labels else 8
    maps.value_type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return proto


@pytest.mark.parametrize("labels", LABELS)
def test_the_scores_are_given_out(tmp_path: Path, labels: str) -> None:
    onnx.save(proto := model(labels), tmp_path / "m.onnx")
    artifact = graphopt.compile(tmp_path / "m.onnx", output=tmp_path / "m.gopt")  # compared
    assert graphopt.check(tmp_path / "m.onnx", tmp_path / "m.gopt", batches=(1, 3)).agrees
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    got, source = artifact.run({"x": x}), OnnxModel(tmp_path / "m.onnx").run({"x": x})
    assert source["z"].shape == (4, 3)
    np.testing.assert_allclose(got["z"], source["z"], rtol=1e-6)
    np.testing.assert_array_equal(got["y"], got["z"])
    rows = bench(
        tmp_path / "m.gopt",
        source=tmp_path / "m.onnx",
        batches=[2],
        peers="onnxruntime",
        seconds=0.001,
    ).rows
    assert max(rows[0].differences.values()) < 1e-6
    graph = onnx_io.from_proto(proto)
    assert graph.metadata["tensors_of_maps"] == "'z'"
    assert proto.graph.node[1].op_type == "ZipMap"  # the caller's model is as it was


@pytest.mark.parametrize("labels", ["classlabels_int64s=[3,1,2]", 'classlabels_strings=["b","a"]'])
def test_columns_in_another_order_are_refused(labels: str) -> None:
    with pytest.raises(UnsupportedOpError, match=r"do not rise.*zipmap=False"):
        onnx_io.from_proto(model(labels))


def test_maps_that_the_graph_reads_are_refused() -> None:
    proto = model(LABELS[0], "one = Constant<value_int=0>() a = SequenceAt(z, one)")
    with pytest.raises(UnsupportedOpError, match="maps are not supported"):
        onnx_io.from_proto(proto)
