"""rnn, gru and lstm against ONNX Runtime and the ONNX reference implementation."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from tvm import relax

from graphopt.targets.cpu.kernels.recurrent import gru, lstm, rnn, transpose_recurrence
from graphopt.targets.kernels.activation import Activation

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FACTORY = {"RNN": rnn, "GRU": gru, "LSTM": lstm}
INPUTS = 3


@dataclass(frozen=True)
class Case:
    op: str
    hidden: int = 5
    direction: str = "forward"
    inputs: tuple[str, ...] = ()  # optional inputs: sequence_lens, initial_h, initial_c, peepholes
    attributes: dict = field(default_factory=dict)  # of the ONNX operator
    options: dict = field(default_factory=dict)  # of the kernel, for those attributes

    @property
    def directions(self):
        return 2 if self.direction == "bidirectional" else 1

    def kernel(self):
        given = {name: True for name in self.inputs}
        return FACTORY[self.op](self.hidden, self.direction, **given, **self.options)


TANH, SIGMOID = Activation("tanh"), Activation("sigmoid")
EVERY = ["Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh",
         "HardSigmoid", "Elu", "Softsign", "Softplus"]  # fmt: skip
KIND = {
    "LeakyRelu": "leaky_relu",
    "ThresholdedRelu": "thresholded_relu",
    "ScaledTanh": "scaled_tanh",
    "HardSigmoid": "hard_sigmoid",
}
ALPHA = {"Affine": 0.7, "LeakyRelu": 0.3, "ThresholdedRelu": 0.2, "ScaledTanh": 0.8,
         "HardSigmoid": 0.25, "Elu": 0.6}  # fmt: skip
BETA = {"Affine": 0.1, "ScaledTanh": 1.3, "HardSigmoid": 0.4}


def with_activation(name):
    attributes = {"activations": [name]}
    if name in ALPHA:
        attributes["activation_alpha"] = [ALPHA[name]]
    if name in BETA:
        attributes["activation_beta"] = [BETA[name]]
    activation = Activation(KIND.get(name, name.lower()), ALPHA.get(name), BETA.get(name))
    return Case("RNN", 18, attributes=attributes, options={"activations": (activation,)})


STATE = ("sequence_lens", "initial_h")
CASES = {
    "rnn": Case("RNN"),
    "rnn_reverse": Case("RNN", 17, "reverse", STATE),
    "rnn_bidirectional": Case("RNN", 40, "bidirectional", STATE),
    "gru": Case("GRU"),
    "gru_wide": Case("GRU", 48, inputs=("initial_h",)),
    "gru_reverse": Case("GRU", 17, "reverse", STATE),
    "gru_linear": Case(
        "GRU", 20, "bidirectional", STATE, {"linear_before_reset": 1}, {"linear_before_reset": True}
    ),
    "gru_clip": Case("GRU", 8, attributes={"clip": 0.3}, options={"limit": 0.3}),
    "gru_activations": Case(
        "GRU",
        6,
        "bidirectional",
        attributes={
            "activations": ["Sigmoid", "Softsign", "HardSigmoid", "LeakyRelu"],
            "activation_alpha": [0.3, 0.05],
            "activation_beta": [0.6],
        },
        options={
            "activations": (
                SIGMOID,
                Activation("softsign"),
                Activation("hard_sigmoid", 0.3, 0.6),
                Activation("leaky_relu", 0.05),
            )
        },
    ),
    "lstm": Case("LSTM"),
    "lstm_one_unit": Case("LSTM", 1),
    "lstm_reverse": Case("LSTM", 33, "reverse", (*STATE, "initial_c")),
    "lstm_all": Case(
        "LSTM", 20, "bidirectional", (*STATE, "initial_c", "peepholes"),
    ),
    "lstm_forget": Case(
        "LSTM", 6, attributes={"input_forget": 1}, options={"input_forget": True}
    ),
    "lstm_clip": Case(
        "LSTM", 6, inputs=("initial_c",), attributes={"clip": 0.4}, options={"limit": 0.4}
    ),
    **{f"rnn_{name}": with_activation(name) for name in ("LeakyRelu", "Affine")},
}  # fmt: skip


@pytest.fixture(scope="module")
def kernels(compile_kernels):
    return compile_kernels({name: case.kernel() for name, case in CASES.items()})


def random_inputs(case, steps, samples, seed=0):
    rng = np.random.default_rng(seed)
    d, h, g = case.directions, case.hidden, GATES[case.op]

    def uniform(*shape):
        return rng.uniform(-1, 1, shape).astype(np.float32)

    values = {"X": uniform(steps, samples, INPUTS), "W": uniform(d, g * h, INPUTS)}
    values["R"] = uniform(d, g * h, h) / np.sqrt(h).astype(np.float32)
    values["B"] = uniform(d, 2 * g * h)
    lens = rng.integers(1, steps + 1, samples).astype(np.int32) if steps else [0] * samples
    values["sequence_lens"] = np.asarray(lens, np.int32)
    values["initial_h"] = uniform(d, samples, h)
    values["initial_c"] = uniform(d, samples, h)
    values["P"] = uniform(d, 3 * h)
    used = {"X", "W", "R", "B", *case.inputs} | ({"P"} if "peepholes" in case.inputs else set())
    return {name: value for name, value in values.items() if name in used}


def onnx_model(case, values):
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h"]
    order += ["initial_c", "P"] if case.op == "LSTM" else []
    names = [name if name in values else "" for name in order]
    while not names[-1]:
        names.pop()
    outputs = ["Y", "Y_h"] + (["Y_c"] if case.op == "LSTM" else [])
    node = helper.make_node(
        case.op,
        names,
        outputs,
        hidden_size=case.hidden,
        direction=case.direction,
        **case.attributes,
    )
    declared = [
        helper.make_tensor_value_info(
            name, TensorProto.INT32 if value.dtype == np.int32 else TensorProto.FLOAT, value.shape
        )
        for name, value in values.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph([node], "g", declared, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def kernel_inputs(case, values):
    """The kernel's arguments: inputs projected, biases folded, R transposed."""
    d, h, g = case.directions, case.hidden, GATES[case.op]
    bias = values["B"].reshape(d, 2, g, h)
    folded = bias.sum(1)
    linear = case.options.get("linear_before_reset", False)
    if linear:
        folded[:, 2] = bias[:, 0, 2]
    projected = np.einsum("tbi,dni->tbdn", values["X"].astype(np.float64), values["W"])
    projected = projected.reshape(*projected.shape[:2], d * g * h) + folded.reshape(-1)
    arguments = [projected.astype(np.float32), transpose_recurrence(values["R"])]
    if linear:
        arguments.append(np.ascontiguousarray(bias[:, 1, 2]))
    if "P" in values:
        arguments.append(values["P"])
    return arguments + [
        values[name] for name in ("sequence_lens", "initial_h", "initial_c") if name in values
    ]


def run_kernel(kernel, case, values):
    steps, samples = values["X"].shape[:2]
    d, h = case.directions, case.hidden
    outs = [((steps, d, samples, h), "float32"), ((d, samples, h), "float32")]
    outs += [((d, samples, h), "float32")] if case.op == "LSTM" else []
    return kernel(kernel_inputs(case, values), outs)


def assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("samples", [1, 4, 14])  # blocks of 8, 4 and 1
@pytest.mark.parametrize("name", CASES)
def test_matches_onnxruntime(kernels, name, samples):
    case = CASES[name]
    values = random_inputs(case, 7, samples, seed=samples)
    model = onnx_model(case, values).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    expected = onnxruntime.InferenceSession(model, options).run(None, values)
    assert_close(run_kernel(kernels[name], case, values), expected)


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm", "gru_wide", "lstm_one_unit"])
def test_matches_the_onnx_reference(kernels, name):
    case = CASES[name]
    values = random_inputs(case, 5, 2)
    expected = ReferenceEvaluator(onnx_model(case, values)).run(None, values)
    y, y_h, *_ = run_kernel(kernels[name], case, values)  # the reference has no third output
    assert_close([y, y_h], [np.reshape(expected[0], y.shape), np.reshape(expected[1], y_h.shape)])


@pytest.mark.parametrize("name", ["rnn_bidirectional", "gru_linear", "lstm_all"])
def test_no_steps_leave_the_initial_state(kernels, name):
    case = CASES[name]
    for steps, samples in ((0, 3), (4, 0)):
        values = random_inputs(case, steps, samples)
        y, y_h, *y_c = run_kernel(kernels[name], case, values)
        assert y.shape == (steps, 2, samples, case.hidden)
        np.testing.assert_array_equal(y_h, values["initial_h"])
        for c in y_c:
            np.testing.assert_array_equal(c, values["initial_c"])


@pytest.mark.parametrize("name", ["rnn_bidirectional", "gru_linear", "lstm_all"])
def test_lengths_outside_the_sequence_are_limited(kernels, name):
    case = CASES[name]
    values = random_inputs(case, 4, 5)
    limited = values | {"sequence_lens": np.array([0, 4, 2, 4, 0], np.int32)}
    wild = values | {"sequence_lens": np.array([-7, 4, 2, 2**31 - 1, -(2**31)], np.int32)}
    for a, b in zip(
        run_kernel(kernels[name], case, wild), run_kernel(kernels[name], case, limited), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    y, y_h, *_ = run_kernel(kernels[name], case, limited)
    assert not y[:, :, [0, 4]].any()
    np.testing.assert_array_equal(y_h[:, [0, 4]], values["initial_h"][:, [0, 4]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: rnn(0),
        lambda: rnn(4, "backward"),
        lambda: gru(4, activations=(TANH,)),
        lambda: lstm(4, "bidirectional", activations=(SIGMOID, TANH, TANH)),
        lambda: rnn(4, activations=(Activation("cosine"),)),
    ],
)
def test_unknown_options_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_narrow_vectors_compute_the_same(compile_kernels):
    case = Case("LSTM", 20)
    values = random_inputs(case, 4, 7)  # blocks of 4, 2 and 1
    kernels = compile_kernels({str(lanes): lstm(20, lanes=lanes) for lanes in (4, 8, 16)})
    narrow, middle, wide = (run_kernel(kernel, case, values) for kernel in kernels.values())
    assert_close(narrow, wide)
    assert_close(middle, wide)


@pytest.mark.parametrize("name", ["gru_wide", "gru_linear", "lstm_all"])
def test_bits_do_not_depend_on_the_batch(kernels, name):
    case = CASES[name]
    values = random_inputs(case, 3, 14)
    whole = run_kernel(kernels[name], case, values)
    for part in (slice(2, 3), slice(5, 10)):
        some = dict(values)
        for given in ("X", "initial_h", "initial_c"):
            if given in values:
                some[given] = np.ascontiguousarray(values[given][:, part])
        if "sequence_lens" in values:
            some["sequence_lens"] = values["sequence_lens"][part]
        y, *states = run_kernel(kernels[name], case, some)
        np.testing.assert_array_equal(y, whole[0][:, :, part])
        for found, expected in zip(states, whole[1:], strict=True):
            np.testing.assert_array_equal(found, expected[:, part])


def test_inside_a_relax_module(compile_relax):
    case = Case("GRU", 20, inputs=("sequence_lens",))

    def emit(builder, x, w, bias, r, lens):
        steps, samples = x.ty.shape[0], x.ty.shape[1]
        kernel = builder.add_func(case.kernel(), "gru")
        gates = builder.emit(relax.op.add(relax.op.matmul(x, w), bias))
        types = [
            relax.TensorType((steps, 1, samples, 20), "float32"),
            relax.TensorType((1, samples, 20), "float32"),
        ]
        both = builder.emit(relax.call_tir(kernel, [gates, r, lens], types))
        last = builder.emit(relax.TupleGetItem(both, 1))
        every = builder.emit(relax.op.sum(relax.TupleGetItem(both, 0), axis=0))
        return builder.emit(relax.op.nn.relu(relax.op.add(every, last)))

    run = compile_relax(
        [
            (("t", "b", INPUTS), "float32"),
            ((INPUTS, 60), "float32"),
            ((60,), "float32"),
            ((1, 20, 60), "float32"),
            (("b",), "int32"),
        ],
        emit,
    )
    for steps, samples in ((5, 6), (1, 1)):
        values = random_inputs(case, steps, samples)
        y, y_h = onnxruntime.InferenceSession(onnx_model(case, values).SerializeToString()).run(
            None, values
        )
        bias = values["B"].reshape(2, 60).sum(0)
        (out,) = run(
            values["X"],
            np.ascontiguousarray(values["W"][0].T),
            bias,
            transpose_recurrence(values["R"]),
            values["sequence_lens"],
        )
        np.testing.assert_allclose(out, np.maximum(y.sum(0) + y_h, 0), rtol=2e-5, atol=2e-6)


def test_onnx_is_the_version_the_semantics_were_read_from():
    assert onnx.defs.get_schema("GRU").since_version >= 14
