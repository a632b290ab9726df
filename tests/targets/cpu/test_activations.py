"""Activations in all forms go into the store of the layer; others stay."""

from __future__ import annotations

import re

import numpy as np
import pytest

from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

TEXT = """(float[N,3,5] x) => ({outputs})
    <float[5,20] w, float[20] b, float half = {{0.5}}, float one = {{1}}, float two = {{2}},
     float root = {{1.4142135}}, float rooth = {{0.70710678}}, float three = {{3}},
     float six = {{6}}, float zero = {{0}}, float cubic = {{0.044715}},
     float tilt = {{0.7978845608}},
     float[1] slope = {{0.25}}, float[20] slopes,
     float[3,1] each> {{ {body} }}"""

ERF = "d = Div(z, root) e = Erf(d) p = Add(e, one) "
NORMED = "m = Mul(z, slopes) n = Add(m, b) p = Sigmoid(n) "
DICE = NORMED + "k = Add(p, b) "
FORMS = {
    "elu": "y = Elu<alpha=0.7>(z)",
    "hard_sigmoid": "y = HardSigmoid<alpha=0.25, beta=0.4>(z)",
    "hard_swish": "y = HardSwish(z)",
    "leaky_relu": "y = LeakyRelu(z)",
    "relu": "y = Relu(z)",
    "sigmoid": "y = Sigmoid(z)",
    "softplus": "y = Softplus(z)",
    "softsign": "y = Softsign(z)",
    "tanh": "y = Tanh(z)",
    "thresholded_relu": "y = ThresholdedRelu<alpha=0.3>(z)",
    "clip": "y = Clip(z, zero, six)",
    "leaky_relu prelu": "y = PRelu(z, slope)",
    "prelu": "y = PRelu(z, slopes)",
    "prelu of Keras": """r = Relu(z) m = Neg(z) n = Relu(m) s = Mul(slopes, n)
        y = Add(r, s)""",
    "silu": "s = Sigmoid(z) y = Mul(z, s)",
    "gated swish": "t = Mul(two, z) s = Sigmoid(t) y = Mul(s, z)",
    "gated dice": DICE + "y = Mul(z, k)",
    "gated dice with its share": DICE + "u = Mul(z, k) y = Mul(u, slopes)",
    "gated before its bias": DICE + "y = Mul(h, k)",
    "gated and a constant": NORMED + "u = Mul(p, z) y = Add(u, b)",
    "gated dice of two products": NORMED
    + """q = Sub(one, p) s = Mul(slopes, q) t = Mul(s, z)
        u = Mul(p, z) y = Add(t, u)""",
    "gated dice of one product": NORMED
    + """q = Sub(one, p) s = Mul(slopes, q) t = Add(s, p)
        y = Mul(t, z)""",
    "hard_swish written out": "s = HardSigmoid<alpha=0.16666667, beta=0.5>(z) y = Mul(s, z)",
    "gelu torch": ERF + "m = Mul(z, half) y = Mul(m, p)",
    "gelu dynamo": ERF + "m = Mul(z, p) y = Mul(m, half)",
    "gelu tf": "d = Mul(z, rooth) e = Erf(d) p = Add(one, e) m = Mul(half, p) y = Mul(z, m)",
    "tanh_gelu": """q = Pow(z, three) r = Mul(q, cubic) s = Add(z, r) t = Mul(s, tilt)
        u = Tanh(t) p = Add(u, one) m = Mul(z, half) y = Mul(m, p)""",
    "gelu whose half is elsewhere": ERF + "y = Mul(z, p)",
    "tanh_gelu whose half is elsewhere": """q = Pow(z, three) r = Mul(q, cubic) s = Add(z, r)
        t = Mul(s, tilt) u = Tanh(t) p = Add(u, one) y = Mul(p, z)""",
}


def text_of(*bodies: str) -> str:
    """Models of one layer, side by side: what one calls `a` is `a0` in the first of them."""
    found = []
    for k, body in enumerate(bodies):
        body = f"h = MatMul(x, w) z = Add(h, b) {body}"
        names = "|".join(set(re.findall(r"(\w+) =", body)))
        found.append(re.sub(rf"\b({names})\b", rf"\g<1>{k}", body))
    whole = " ".join(found)
    outputs = ", ".join(f"float[] {name}" for name in re.findall(r"\b([yv]\d+) =", whole))
    return TEXT.format(outputs=outputs, body=whole)


def check_answers(bodies: dict[str, str]) -> None:
    graph = parse(text_of(*bodies.values()))
    feeds = random_inputs(graph, {"N": 7})
    wanted, found = run_onnxruntime(graph, feeds), Compiled(graph)(feeds)
    for k, name in enumerate(bodies):
        # both approximate what is transcendental to a few units in the last place
        pair = found[f"y{k}"], wanted[f"y{k}"]
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_into_the_layer(form: str) -> None:
    graph = parse(text_of(FORMS[form]))
    legalize(graph, lanes=8)
    (layer,) = graph.nodes
    assert (layer.op, layer.attrs["activation"]) == (f"{DOMAIN}::Dense", form.split()[0])


def test_answers_of_layers() -> None:
    check_answers(FORMS)


def test_gelu_of_opset_20() -> None:
    for attribute, kind in (("", "gelu"), ('<approximate="tanh">', "tanh_gelu")):
        graph = parse(text_of(f"y = Gelu{attribute}(z)"), opset=20)
        legalize(graph, lanes=8)
        assert [node.attrs["activation"] for node in graph.nodes] == [kind]


OTHERS = [
    "y = Exp(z)",
    "y = PRelu(z, each)",
    NORMED + "q = Mul(p, p) y = Mul(q, z)",
    NORMED + "q = Sigmoid(z) s = Mul(p, z) y = Mul(q, s)",
    DICE + "y = Mul(z, k) v = Exp(p)",
    "r = Relu(z) m = Neg(h) n = Relu(m) s = Mul(slopes, n) y = Add(r, s)",
    "s = Sigmoid(h) y = Mul(z, s)",
    "s = HardSigmoid(z) y = Mul(s, z)",
    "d = Div(z, two) e = Erf(d) p = Add(e, one) m = Mul(z, half) y = Mul(m, p)",
    ERF + "m = Mul(z, one) y = Mul(m, p)",
    "d = Div(z, two) e = Erf(d) p = Add(e, one) y = Mul(z, p)",
    "a = Relu(z) y = Softplus(a)",
    "s = Sigmoid(z) y = Mul(z, s) v = Exp(z)",
]


@pytest.mark.parametrize("body", OTHERS)
def test_others_stay(body: str) -> None:
    graph = parse(text_of(body))
    legalize(graph, lanes=8)
    assert any(node.domain != DOMAIN for node in graph.nodes)


def test_answers_of_others() -> None:
    check_answers({body: body for body in OTHERS})


@pytest.mark.parametrize("shape", ["", "[N]"])
def test_what_has_no_known_columns_stays(shape: str) -> None:
    text = f"(float{shape} x) => (float{shape} y) <float[1] one = {{1}}, float two = {{2}}>"
    graph = parse(
        text.replace("[1]", "[1]" if shape else "") + " { p = Mul(x, two) y = Add(p, one) }"
    )
    legalize(graph, lanes=8)
    assert [node.op for node in graph.nodes] == ["Mul", "Add"]
