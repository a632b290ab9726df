"""The recurrence of an RNN, GRU or LSTM on a GPU against ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt.errors import UnsupportedOpError
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops import attentional_gru, gru
from graphopt.targets.cuda.kernels import recurrent
from graphopt.testing import run_onnxruntime

from .conftest import Runner

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
HIDDEN, WIDTH = 20, 6


def model(op: str, hidden: int = HIDDEN, **attrs: Any) -> onnx.ModelProto:
    """One layer with all its operands, for sequences x [t, n, WIDTH] of different lengths."""
    rng, directions = np.random.default_rng(1), 2 if attrs["direction"] == "bidirectional" else 1
    wide = GATES[op] * hidden
    arrays = {"w": (directions, wide, WIDTH), "r": (directions, wide, hidden)}
    arrays["b"] = (directions, 2 * wide)
    state = f"float[{directions}, n, {hidden}]"
    inputs, operands = f"{state} start", "x, w, r, b, lens, start"
    results, last = "y, last", f"{state} last"
    if op == "LSTM":
        arrays["p"] = (directions, 3 * hidden)
        inputs, operands = f"{inputs}, {state} cell", f"{operands}, cell, p"
        results, last = "y, last, last_cell", f"{last}, {state} last_cell"
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]>
        agraph (float[t, n, {WIDTH}] x, int32[n] lens, {inputs})
            => (float[t, {directions}, n, {hidden}] y, {last}) {{
            {results} = {op} <hidden_size = {hidden}> ({operands})
        }}"""
    )
    for name, value in attrs.items():
        proto.graph.node[0].attribute.append(onnx.helper.make_attribute(name, value))
    for name, shape in arrays.items():
        array = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def feed_of(source: onnx.ModelProto, steps: int, samples: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    sizes = {"t": steps, "n": samples}
    feed = {}
    for value in source.graph.input:
        dims = [sizes.get(d.dim_param, d.dim_value) for d in value.type.tensor_type.shape.dim]
        feed[value.name] = rng.standard_normal(dims).astype(np.float32)
    feed["lens"] = rng.integers(1, steps + 1, samples).astype(np.int32)
    return feed


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("RNN", {"direction": "bidirectional", "activations": ["Relu", "Tanh"]}),
        ("RNN", {"direction": "reverse", "clip": 0.5}),
        ("GRU", {"direction": "forward"}),
        ("GRU", {"direction": "reverse", "linear_before_reset": 1}),
        ("GRU", {"direction": "bidirectional", "linear_before_reset": 1}),
        ("LSTM", {"direction": "forward"}),
        ("LSTM", {"direction": "bidirectional", "clip": 0.4}),
        ("LSTM", {"direction": "reverse", "input_forget": 1}),
    ],
    ids=lambda given: given if isinstance(given, str) else "-".join(map(str, given.values())),
)
def test_against_onnxruntime(op: str, attrs: dict[str, Any], run_model: Runner) -> None:
    source = model(op, **attrs)
    # Blocks hold 6 samples, of an LSTM 3.
    check(source, [feed_of(source, 4, 3), feed_of(source, 2, 8)], run_model)


def check(source: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], run_model: Runner) -> None:
    session = onnxruntime.InferenceSession(source.SerializeToString())
    for feed, found in zip(feeds, run_model(source, *feeds)):
        for name, expected in zip((o.name for o in session.get_outputs()), session.run(None, feed)):
            # float32 sums of 20 to 130 products, four steps
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture
def many_are_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, two samples are as many as others are beyond `_FEW`."""
    monkeypatch.setattr(recurrent, "_FEW", {True: 1, False: 1})
    recurrent.recurrent.cache_clear()
    yield
    recurrent.recurrent.cache_clear()


# How many threads share a unit, and samples a thread; whether they keep weights.
SHARED = {
    ("RNN", 90): (2, 2, True), ("GRU", 33): (2, 2, True), ("GRU", 50): (4, 4, True),
    ("LSTM", 50): (4, 4, True), ("GRU", 130): (1, 8, False), ("LSTM", 101): (1, 8, False),
}  # fmt: skip


@pytest.mark.parametrize(("op", "hidden"), SHARED)
@pytest.mark.usefixtures("many_are_two")
def test_units_that_threads_share(op: str, hidden: int, run_model: Runner) -> None:
    (few, one), (rest, several) = recurrent.ranges(hidden, GATES[op])
    assert few == 1 and rest is None and one.rows == 1
    assert (several.lanes, several.rows, several.kept) == SHARED[op, hidden]
    source = model(op, hidden, direction="reverse" if several.kept else "forward")
    check(source, [feed_of(source, 2, 1), feed_of(source, 2, several.rows + 1)], run_model)


def test_weights_stay_in_registers_if_there_are_enough() -> None:
    """A block has 65536 registers, a thread 255; a step more than 1024 threads cannot be."""
    for gates, hidden in itertools.product((1, 3, 4), range(1, recurrent.MAX_HIDDEN + 1)):
        for _, sharing in recurrent.ranges(hidden, gates):
            threads = hidden * sharing.lanes
            assert threads <= 1024 and sharing.rows in (1, 2, sharing.lanes, 8)
            if sharing.kept:
                assert threads * sharing.registers(hidden, gates) <= 65536
                assert sharing.registers(hidden, gates) < 255
            assert sharing.pieces(hidden) * sharing.lanes * sharing.width >= hidden
    kept = {gates: max(h for h in range(1, 200) if recurrent.ranges(h, gates)[0][1].kept)
            for gates in (1, 3, 4)}  # fmt: skip
    assert kept[1] >= 128 and kept[3] >= 100 and kept[4] >= 96


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_no_samples(op: str, run_model: Runner) -> None:
    source = model(op, direction="forward")
    (found,) = run_model(source, feed_of(source, 2, 0))
    assert found["y"].shape == (2, 1, 0, HIDDEN) and found["last"].shape == (1, 0, HIDDEN)


@pytest.mark.parametrize(("linear", "initial"), [(0, True), (1, False)])
def test_last_state(linear: int, initial: bool, run_model: Runner) -> None:
    rng, graph = np.random.default_rng(3), Graph(opsets={"": 18, gru.DOMAIN: 1})
    shapes = {"x": (4, 3, WIDTH), "w": (1, 3 * HIDDEN, WIDTH), "r": (1, 3 * HIDDEN, HIDDEN)}
    shapes |= {"b": (1, 6 * HIDDEN)} | ({"start": (1, 3, HIDDEN)} if initial else {})
    values = [graph.add_input(name, TensorType("float32", dims)) for name, dims in shapes.items()]
    attrs = {"hidden_size": HIDDEN, "linear_before_reset": linear}
    graph.set_outputs([graph.insert(gru.OP_TYPE, values, attrs, domain=gru.DOMAIN).output], ["y"])
    feed = {
        name: (rng.standard_normal(dims) * 0.3).astype(np.float32) for name, dims in shapes.items()
    }
    (found,) = run_model(graph, feed)
    # float32 sums of 20 products, four steps
    np.testing.assert_allclose(found["y"], run_onnxruntime(graph, feed)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("many_are_two")
def test_attention_scales_updates(run_model: Runner) -> None:
    rng, graph = np.random.default_rng(4), Graph(opsets={"": 18, attentional_gru.DOMAIN: 1})
    hidden, feeds = 33, []
    fixed = {"w": (1, 3 * hidden, WIDTH), "r": (1, 3 * hidden, hidden), "b": (1, 6 * hidden)}
    constants = {
        name: graph.constant((rng.standard_normal(shape) * 0.3).astype(np.float32))
        for name, shape in fixed.items()
    }
    t, n = Sym.named("t"), Sym.named("n")
    shapes = {"x": (t, n, WIDTH), "h": (1, n, hidden), "a": (t, n, 1)}
    inputs = {k: graph.add_input(k, TensorType("float32", dims)) for k, dims in shapes.items()}
    x, h, a = inputs.values()
    values = [x, *constants.values(), h, a]
    op, domain = attentional_gru.OP_TYPE, attentional_gru.DOMAIN
    graph.set_outputs([graph.insert(op, values, domain=domain).output], ["y"])
    for sizes in ({t: 3, n: 1}, {t: 2, n: 5}):
        dims = {k: [sizes.get(dim, dim) for dim in shape] for k, shape in shapes.items()}
        feeds.append({k: rng.standard_normal(d).astype(np.float32) for k, d in dims.items()})
    for feed, found in zip(feeds, run_model(graph, *feeds)):
        # float32 sums of 33 products, three steps
        expected = run_onnxruntime(graph, feed)["y"]
        np.testing.assert_allclose(found["y"], expected, rtol=1e-4, atol=1e-5)


def test_more_units_than_a_block_has_threads(run_model: Runner) -> None:
    with pytest.raises(UnsupportedOpError, match="more than 1024 hidden units"):
        run_model(model("LSTM", 1025, direction="forward"))


LOOP = """agraph (float[n, t, 8] x) => (float[t, n, 8] all, float[n, 8] last) {
    start = ReduceSum <keepdims = 0> (x, second)
    size = Shape <start = 1, end = 2> (x)
    steps = Squeeze (size)
    last, all = Loop (steps, , start) <body = step (int64 i, bool go, float[n, 8] h)
        => (bool on, float[n, 8] new, float[n, 8] state) {
        on = Identity (go)
        xi = Gather <axis = 1> (x, i)
        a = MatMul (xi, w)
        c = MatMul (h, r)
        az, ar, an = Split <axis = 1, num_outputs = 3> (a)
        cz, cr, cn = Split <axis = 1, num_outputs = 3> (c)
        pz = Add (az, cz) z = Sigmoid (pz)
        pr = Add (ar, cr) reset = Sigmoid (pr)
        q = Mul (reset, cn) pn = Add (an, q) candidate = Tanh (pn)
        rest = Sub (one, z) fresh = Mul (rest, candidate) kept = Mul (z, h)
        new = Add (fresh, kept)
        state = Identity (new)
    }>
}"""


def test_loops_of_any_length(run_text: Runner) -> None:
    rng = np.random.default_rng(4)
    constants = {name: rng.standard_normal((8, 24)).astype(np.float32) for name in "wr"}
    constants |= {"one": np.array(1, np.float32), "second": np.array([1])}
    feeds = [
        {"x": rng.standard_normal((n, t, 8)).astype(np.float32)}
        for n, t in ((3, 4), (1, 1), (2, 0))
    ]
    found = run_text(LOOP, *feeds, constants=constants, passes="O2")
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]>\n{LOOP}')
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for feed, results in zip(feeds[:2], found):
        for name, expected in zip(("all", "last"), session.run(None, feed)):
            # float32 sums of 8 products, four steps
            np.testing.assert_allclose(results[name], expected, rtol=1e-4, atol=1e-5)
    assert found[2]["all"].shape == (0, 2, 8)
    np.testing.assert_array_equal(found[2]["last"], np.zeros((2, 8)))
