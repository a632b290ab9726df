"""`graphopt::GRU`: both branches of its body, its type, its kernel."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import InvalidModelError
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.gru import DOMAIN, ENOUGH, OP_TYPE
from graphopt.testing import Compiled, run_onnxruntime

STEPS, BATCH = Sym.named("T"), Sym.named("N")
WIDTH, HIDDEN = 3, 16


def graph_of(linear: bool, initial: bool, opset: int = 18) -> Graph:
    graph = Graph(opsets={"": opset, DOMAIN: 1})
    shapes = {
        "x": (STEPS, BATCH, WIDTH),
        "w": (1, 3 * HIDDEN, WIDTH),
        "r": (1, 3 * HIDDEN, HIDDEN),
        "b": (1, 6 * HIDDEN),
    }
    if initial:
        shapes["initial_h"] = (1, BATCH, HIDDEN)
    values = [graph.add_input(name, TensorType("float32", dims)) for name, dims in shapes.items()]
    attrs = {"hidden_size": HIDDEN, "linear_before_reset": int(linear)}
    graph.set_outputs([graph.insert(OP_TYPE, values, attrs, domain=DOMAIN).output], ["y"])
    return graph


def feeds_for(graph: Graph, steps: int, batch: int) -> dict[str, np.ndarray]:
    rng, sizes = np.random.default_rng(0), {"T": steps, "N": batch}
    shapes = {v.name: [sizes.get(str(d), d) for d in v.tensor.dims] for v in graph.inputs}
    return {name: rng.normal(0, 0.5, s).astype(np.float32) for name, s in shapes.items()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_hand(feeds: dict[str, np.ndarray], linear: bool) -> np.ndarray:
    """The op in NumPy, gate by gate, in float64."""
    x, w, r, b = (feeds[name].astype(np.float64) for name in "xwrb")
    wz, wr, wn = np.split(w[0].T, 3, axis=1)
    rz, rr, rn = np.split(r[0].T, 3, axis=1)
    bz, br, bn, cz, cr, cn = np.split(b[0], 6)
    h = feeds["initial_h"][0] if "initial_h" in feeds else np.zeros((x.shape[1], HIDDEN))
    for xt in x:
        z = sigmoid(xt @ wz + bz + h @ rz + cz)
        reset = sigmoid(xt @ wr + br + h @ rr + cr)
        left = reset * (h @ rn + cn) if linear else (reset * h) @ rn + cn
        h = z * h + (1 - z) * np.tanh(xt @ wn + bn + left)
    return np.asarray(h[np.newaxis])


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("initial", [False, True])
def test_body_and_kernel(linear: bool, initial: bool) -> None:
    graph = graph_of(linear, initial)
    compiled = Compiled(graph)
    for steps, batch in ((1, 1), (7, 5), (4, ENOUGH // HIDDEN)):
        feeds = feeds_for(graph, steps, batch)
        for found in (run_onnxruntime(graph, feeds), compiled(feeds)):
            np.testing.assert_allclose(found["y"], by_hand(feeds, linear), rtol=1e-4, atol=1e-5)


def test_body_of_a_newer_opset() -> None:
    graph = graph_of(linear=True, initial=False, opset=22)
    feeds = feeds_for(graph, 3, ENOUGH)
    found = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(found, by_hand(feeds, True), rtol=1e-4, atol=1e-5)


def test_wrong_inputs_are_refused() -> None:
    graph = graph_of(True, True)
    with pytest.raises(InvalidModelError, match=r"h being 5, not"):
        graph.insert(OP_TYPE, list(graph.inputs), {"hidden_size": 5}, domain=DOMAIN)
    with pytest.raises(InvalidModelError, match="must be float32 x"):
        graph.insert(OP_TYPE, list(graph.inputs[:3]), {"hidden_size": HIDDEN}, domain=DOMAIN)
