"""Equal names of sizes, and names that are sums, are believed where an op needs that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.analysis.batch_sizes import batch_sizes
from graphopt.errors import InputError
from graphopt.ir.declared_sizes import read
from graphopt.ir.onnx_io import from_proto
from graphopt.testing import run_onnxruntime

# What is looked up for all rows together is cut up by as many rows as `user` has.
HISTORY = """<ir_version: 9, opset_import: ["": 18]>
g (int64[N] user, int64[SIZE] ids, float[N,4] mask) => (float[] y)
    <float[5] t = {1., 2., 3., 4., 5.}, float[4,1] w = {1., 2., 3., 4.},
    float[2,1] v = {1., 2.}, int64[1] flat = {-1}, int64[1] rest = {-1}, int64[2] two = {2, 2}> {
        i = Reshape(ids, flat)
        e = Gather(t, i)
        s = Shape(user)
        shape = Concat<axis=0>(s, rest)
        OP
    }"""
MASKED = "x = Reshape(e, shape) y = Mul(x, mask)"


def model(name: str, op: str = MASKED, size: str = "A,4") -> onnx.ModelProto:
    """`HISTORY` with `ids` of the sizes `size`, of which A is called `name`."""
    proto = onnx.parser.parse_model(HISTORY.replace("SIZE", size).replace("OP", op))
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "A":
                dim.dim_param = name
    return proto


def ids_type(name: str, op: str = MASKED, size: str = "A,4") -> str:
    return str(from_proto(model(name, op, size)).inputs[1].type)


def feeds(users: int, *ids: int) -> dict[str, np.ndarray]:
    mask = np.arange(users * 4, dtype=np.float32).reshape(users, 4)
    cut = np.arange(np.prod(ids)).reshape(ids) % 5
    return {"user": np.arange(users), "ids": cut, "mask": mask}


@pytest.mark.parametrize(
    ("op", "size", "found"),
    [
        (MASKED, "A,4", "i64[N, 4]"),
        ("x = Reshape(e, shape) y = Relu(x)", "A,4", "i64[N, 4]"),
        ("n = Concat<axis=0>(s, two) x = Reshape(e, n) y = Relu(x)", "A,4", "i64[N, 4]"),
        ("n = Concat<axis=0>(s, two) x = Expand(e, n) y = Relu(x)", "A", "i64[N@ids]"),
        ("n = Concat<axis=0>(two, s) x = Expand(e, n) y = Relu(x)", "A", "i64[N]"),
        ("y = Relu(e)", "A,4", "i64[N@ids, 4]"),  # nothing needs it
        (MASKED, "A", "i64[N@ids]"),  # an axis of 1 would be all: bags of ids are called alike
        ("x = Reshape(e, shape) y = MatMul(x, w)", "A,4", "i64[N, 4]"),
        ("x = Reshape(e, shape) y = MatMul(x, v)", "A,4", "i64[N@ids, 4]"),  # two in a row, not 4
    ],
)
def test_equal_names_are_believed_where_an_op_needs_that(op: str, size: str, found: str) -> None:
    assert ids_type("N", op, size) == found
    assert ids_type("M", op, size) == "i64[M, 4]" if "4" in size else "i64[M]"


@pytest.mark.parametrize("name", ["4*N", "N * 4", "2*N + N*2", "N*4 + 8 - 8"])
def test_names_may_be_sums(name: str) -> None:
    graph = from_proto(model(name, size="A"))
    assert [str(v.type) for v in graph.inputs] == ["i64[N]", "i64[4*N]", "f32[N, 4]"]
    assert str(graph.outputs[0].type) == "f32[N, 4]"


@pytest.mark.parametrize("name", ["3*N", "4*K", "N**4", "4*N/1", "N-4", "4(N)", "f(N)"])
def test_sums_that_do_not_help_stay_names(name: str) -> None:
    assert ids_type(name, size="A").split("@")[0].rstrip("]") == f"i64[{name}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("n", "n"),
        ("s0 + 1", "s0 + 1"),
        ("n - 1", "n + -1"),
        ("b*l*2", "2*b*l"),
        ("7", "7"),
        ("batch-size", "None"),
        ("1n", "None"),
        ("1or n", "None"),
        ("True", "None"),
        ("n // 2", "None"),
        ("9" * 30 + "*n", "None"),
        ("n + " * 40 + "n", "None"),
        ("", "None"),
        (" ", "None"),
    ],
)
def test_what_names_say(text: str, found: str) -> None:
    assert str(read(text)) == found


def test_sums_are_batches_too() -> None:
    found = batch_sizes(from_proto(model("2*N + 1", "y = Relu(e)", "A")), 5)
    assert found == {"N": 5, "2*N + 1@ids": 11, "N@mask": 5}


@pytest.mark.parametrize(
    ("name", "size", "ids"), [("N", "A,4", (3, 4)), ("4*N", "A", (12,)), ("N", "A", (12,))]
)
@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
def test_answers(name: str, size: str, ids: tuple[int, ...], target: str, tmp_path: Path) -> None:
    proto = model(name, size=size)
    source = from_proto(proto)
    output = tmp_path / ("m.gopt" if target == "cpu" else "m.onnx")
    compiled = graphopt.compile(from_proto(proto), target, output=output, verify=False)
    given = feeds(3, *ids)
    assert np.array_equal(compiled.run(given)["y"], run_onnxruntime(source, given)["y"])
    if target == "cpu":  # no virtual machine
        assert compiled.manifest["sizes"] is not None  # type: ignore[union-attr]
    else:
        inputs = onnx.load(output).graph.input
        names = [[d.dim_param for d in v.type.tensor_type.shape.dim] for v in inputs]
        assert names[1][0] == (name if (name, size) != ("N", "A") else "N@ids")


@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
@pytest.mark.parametrize(
    ("name", "size", "ids", "said"),
    [
        ("N", "A,4", (6, 4), "'ids' has 6 on axis 0 where input 'user' has 3"),
        ("4*N", "A", (24,), r"'ids' has 24 on axis 0, expected 12: it is '4\*N'"),
        ("4*N", "A", (11,), r"'ids' has 11 on axis 0, expected 12: it is '4\*N'"),
    ],
)
def test_names_that_are_wrong_are_told(
    name: str, size: str, ids: tuple[int, ...], said: str, target: str, tmp_path: Path
) -> None:
    """Without the names, 6 rows of 4 ids could be 3 of 8."""
    graph = from_proto(model(name, "x = Reshape(e, shape) y = Relu(x)", size))
    output = tmp_path / ("m.gopt" if target == "cpu" else "m.onnx")
    compiled = graphopt.compile(graph, target, output=output, verify=False)
    with pytest.raises(InputError, match=said):
        compiled.run(feeds(3, *ids))
