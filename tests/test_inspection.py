"""What `inspect` finds in a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.analysis.batch_sizes import sizes_at
from graphopt.analysis.tables import find_tables, tables_of
from graphopt.errors import ArtifactError, InvalidModelError
from graphopt.inspection import inspect
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.types import TensorType
from graphopt.testing import parse

CLICKS = """(int64[N,3] ids, float[N,4] dense) => (float[N,1] y)
<float[100,8] users, float[50,8] items, float[12,1] w, float[1] b,
 int64 zero = {0}, int64 two = {2}> {
    user = Gather<axis=1>(ids, zero)
    item = Gather<axis=1>(ids, two)
    eu = Gather(users, user)
    ei = Gather(items, item)
    e = Mul(eu, ei)
    x = Concat<axis=1>(e, dense)
    y = Gemm(x, w, b)
}"""


def test_lookups_inside_of_subgraphs() -> None:
    graph = parse("""(int64[N] a, bool c) => (float[N,8] y) <float[4,8] t, float[5,8] u> {
        y = If<then_branch = p () => (float[N,8] q) { q = Gather(t, a) },
               else_branch = r () => (float[N,8] s) { s = Gather(u, a) }>(c)
    }""")
    assert [t.name for t in find_tables(graph)] == ["u", "t"]
    found = inspect(graph)
    assert found.nodes == {"Gather": 2, "If": 1}
    assert [use.op for use in found.ops] == ["If"]


def test_cost_at_a_batch_size() -> None:
    one, many = inspect(parse(CLICKS), 1), inspect(parse(CLICKS), 64)
    assert one.sizes == {"N": 1}
    assert one.flops == 8 + 2 * 12 + 1
    assert many.flops == 64 * one.flops
    assert many.bytes < 64 * one.bytes  # weights are read once
    assert one.parameters == 100 * 8 + 50 * 8 + 12 + 1
    assert one.weight_bytes == 4 * one.parameters + 16
    assert one.uncounted == {}


def test_sizes() -> None:
    graph = parse("(float[N,L,4] x, int64[M] ids) => (float y) { y = ReduceSum(x) }")
    assert sizes_at(graph, 5) == {"L": 1, "M": 5, "N": 5}
    assert inspect(graph, 5, {"L": 7}).flops == 5 * 7 * 4


def test_namesakes_of_the_batch() -> None:
    graph = parse("(float[N,4] x, int64[2,A] o, int64[B] csr) => (float y) { y = ReduceSum(x) }")
    graph.inputs[1].type = TensorType("int64", (2, Sym.named("N@o")))
    graph.inputs[2].type = TensorType("int64", (Sym.named("N + 1@csr"),))
    assert sizes_at(graph, 5) == {"N": 5, "N + 1@csr": 6, "N@o": 5}


def test_what_is_known_only_at_run_time_is_said() -> None:
    found = inspect(parse("(float[N] x) => (int64[1,K] y) { y = NonZero(x) }"))
    assert found.uncounted == {"NonZero": 1}


def test_inputs_and_outputs() -> None:
    found = inspect(parse(CLICKS))
    assert [(p.name, p.dtype, p.shape) for p in found.inputs] == [
        ("ids", "int64", ("N", 3)),
        ("dense", "float32", ("N", 4)),
    ]
    assert [p.name for p in found.outputs] == ["y"]


def test_json_is_complete() -> None:
    data = json.loads(inspect(parse(CLICKS), 4).to_json())
    assert data["tables"][0] == tables_of(parse(CLICKS))[0] | {"indexed_by": ["ids[:, 0]"]}
    assert data["flops_per_sample"] == 33
    assert data["nodes"] == {"Gather": 4, "Mul": 1, "Concat": 1, "Gemm": 1}
    assert data["batch"] == 4


def test_a_file(tmp_path: Path) -> None:
    onnx_io.save(parse(CLICKS), tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx")
    assert (found.name, found.kind) == ("m.onnx", "model")
    assert found.facts["file_bytes"] == (tmp_path / "m.onnx").stat().st_size


def test_weights_that_stay_on_disk(tmp_path: Path) -> None:
    graph = parse(CLICKS)
    onnx_io.save(graph, tmp_path / "m.onnx", inline_limit=0)
    proto = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    assert any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer)
    assert inspect(tmp_path / "m.onnx").parameters == inspect(graph).parameters


def test_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no such file"):
        inspect(tmp_path / "absent.onnx")
    with pytest.raises(ArtifactError, match="not a graphopt artifact"):
        inspect(tmp_path)


def test_the_example(example: Path) -> None:
    found = inspect(example, 64)
    assert len(found.tables) == 11
    assert found.tables[0].indexed_by == ("ids[:, 0]",)
    assert {t.indexed_by for t in found.tables} >= {("history",), ("ids[:, 9]",)}
    assert np.isclose(found.flops / 64, 76.5e3, rtol=0.01)
