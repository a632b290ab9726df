"""`graphopt::AttentionalGRU`: its body, its type, its kernel."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import InvalidModelError
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.attentional_gru import DOMAIN, OP_TYPE
from graphopt.testing import Compiled, run_onnxruntime

STEPS, BATCH = Sym.named("T"), Sym.named("N")


def graph_of(inputs: int, hidden: int) -> Graph:
    graph = Graph(opsets={"": 18, DOMAIN: 1})
    shapes = {
        "x": (STEPS, BATCH, inputs),
        "w": (1, 3 * hidden, inputs),
        "r": (1, 3 * hidden, hidden),
        "b": (1, 6 * hidden),
        "initial_h": (1, BATCH, hidden),
        "attention": (STEPS, BATCH, 1),
    }
    values = [graph.add_input(name, TensorType("float32", dims)) for name, dims in shapes.items()]
    graph.set_outputs([graph.insert(OP_TYPE, values, domain=DOMAIN).output], ["y"])
    return graph


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_hand(
    x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, h: np.ndarray, a: np.ndarray
):  # type: ignore[no-untyped-def]
    """The op in NumPy, gate by gate."""
    wz, wr, wn = np.split(w[0].T, 3, axis=1)
    rz, rr, rn = np.split(r[0].T, 3, axis=1)
    bz, br, bn, cz, cr, cn = np.split(b[0], 6)
    state = h[0]
    for xt, at in zip(x, a):
        z = sigmoid(xt @ wz + bz + state @ rz + cz)
        reset = sigmoid(xt @ wr + br + state @ rr + cr)
        n = np.tanh(xt @ wn + bn + reset * (state @ rn + cn))
        state = state + at * z * (n - state)
    return state[np.newaxis]


@pytest.mark.parametrize(("inputs", "hidden"), [(3, 4), (16, 16), (5, 33)])
def test_body_and_kernel(inputs: int, hidden: int) -> None:
    graph, rng = graph_of(inputs, hidden), np.random.default_rng(0)
    compiled = Compiled(graph)
    for steps, batch in ((1, 1), (7, 5), (20, 9)):
        sizes = {"T": steps, "N": batch}
        shapes = {v.name: [sizes.get(str(d), d) for d in v.tensor.dims] for v in graph.inputs}
        feeds = {name: rng.normal(0, 0.5, s).astype(np.float32) for name, s in shapes.items()}
        feeds["attention"] = rng.random((steps, batch, 1)).astype(np.float32)
        wanted = by_hand(*(feeds[v.name].astype(np.float64) for v in graph.inputs))
        for found in (run_onnxruntime(graph, feeds), compiled(feeds)):
            # float32 through up to 20 steps
            np.testing.assert_allclose(found["y"], wanted, rtol=1e-4, atol=1e-5)


def test_wrong_inputs_are_refused() -> None:
    graph = graph_of(3, 4)
    with pytest.raises(InvalidModelError, match=r"attention \[t, b, 1\]"):
        graph.insert(OP_TYPE, list(graph.inputs[:5]), domain=DOMAIN)
