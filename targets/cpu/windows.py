"""Layers on the windows of a sequence, which are read where the sequence lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite.rewriter import erase_dead
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.windows import (
    Sliding,
    pack_window_bias,
    pack_window_weights,
    window_params,
    window_products,
)
from graphopt.targets.kernels.epilogue import Epilogue
from graphopt.targets.relax.lowering import Lowering, lowers

_OTHERWISE = ("data", "words", "scale", "columns", "parts", "result")
"""Attributes of layers that are computed in another way."""


@type_rule("WindowProducts", domain=DOMAIN)
def _window_products_type(node: Node) -> list[Type | None]:
    data, weights = node.inputs[0], node.inputs[1]
    assert data is not None and weights is not None
    sliding: Sliding = node.attrs["sliding"]
    dims = [*data.tensor.dims[:-2], sliding.count, weights.tensor.dims[1]]
    return [tensor_type("float32", dims)]


@cost_rule("WindowProducts", domain=DOMAIN)
def _window_products_cost(node: Node) -> Cost:
    extra = sum(other is not None for other in node.inputs[2:]) + ("activation" in node.attrs)
    per_element = 2 * node.attrs["sliding"].elements + extra
    return streaming(node, per_element * product(node.output.tensor.dims))


def read_windows(graph: Graph) -> None:
    """Let float32 layers read windows that a Gather takes from a sequence, in place."""
    for layer in list(graph.walk()):
        if layer.op == f"{DOMAIN}::Dense" and not any(name in layer.attrs for name in _OTHERWISE):
            found = _windows_of(layer.inputs[0])
            weights = layer.const(1)
            if found is not None and weights is not None and weights.dtype == np.float32:
                _read(graph, layer, *found)


def _windows_of(value: Value | None) -> tuple[Value, Sliding] | None:
    """The sequences that a tensor of windows comes from, if nothing else reads these windows."""
    joined = value.producer if value is not None else None
    taken = joined.inputs[0].producer if joined and joined.op == "Reshape" else None  # type: ignore
    if joined is None or taken is None or taken.op != "Gather":
        return None
    if any(v.is_graph_output or len(v.uses) != 1 for v in (joined.output, taken.output)):
        return None
    data, places = taken.inputs[0], taken.const(1)
    assert data is not None
    *leading, length, width = data.tensor.dims if (data.rank or 0) > 1 else (0, None, None)
    if data.dtype != "float32" or not isinstance(length, int) or not isinstance(width, int):
        return None
    if taken.attr("axis", 0) % (len(leading) + 2) != len(leading) or places is None:
        return None
    sliding = _sliding(places, length, width)
    if sliding is None or not _are_rows(joined.output, leading, sliding):
        return None
    return data, sliding


def _sliding(places: np.ndarray, length: int, width: int) -> Sliding | None:
    """Windows of at least one of `length` positions, if they slide by one over all of them."""
    if places.ndim != 2 or 0 in places.shape:
        return None
    kernel = places.shape[1]
    dilation = int(places[0, 1] - places[0, 0]) if kernel > 1 else 1
    if dilation < 1:
        return None
    sliding = Sliding(length, width, kernel, dilation)
    wanted = np.add.outer(np.arange(sliding.count), np.arange(kernel) * dilation)
    return sliding if np.array_equal(places, wanted) else None


def _are_rows(windows: Value, leading: Sequence[Dim], sliding: Sliding) -> bool:
    return windows.tensor.dims == (*leading, sliding.count, sliding.elements)


def _read(graph: Graph, layer: Node, data: Value, sliding: Sliding) -> None:
    """Put a layer that reads the sequences in the place of another."""
    before = layer.inputs[0].producer  # type: ignore[union-attr]
    made = graph.insert(
        "WindowProducts",
        [data, *layer.inputs[1:]],
        {**layer.attrs, "sliding": sliding},
        domain=DOMAIN,
        before=layer,
        origin=layer.origin,
    )
    graph.replace_uses(layer.output, made.output)
    graph.erase(layer)
    assert before is not None
    erase_dead(graph, [before])


@lowers("WindowProducts", domain=DOMAIN)
def _lower_window_products(lower: Lowering, node: Node) -> Any:
    data, weights, sliding = node.inputs[0], node.const(1), node.attrs["sliding"]
    assert data is not None and weights is not None
    n, samples = weights.shape[1], lower.dim(product(data.tensor.dims[:-2]))
    params = window_params(sliding, n, node.attrs["lanes"])
    kernel = window_products(sliding, n, params, Epilogue.of(node.attrs))
    packed = [pack_window_weights(weights, params), pack_window_bias(node.const(2), n, params)]
    sequences = lower.reshape(lower.expr(data), [samples, sliding.length * sliding.width])
    rows = samples * sliding.count
    operands = [
        lower.reshape(lower.expr(v), [lower.dim(product(v.tensor.dims[:-1])), n])
        for v in node.inputs[3 : 3 + len(node.attrs.get("steps", ()))]
        if v is not None
    ]
    arguments = [sequences, *map(lower.constant, packed), *operands]
    (result,) = lower.kernel(kernel, arguments, [([rows, n], "float32")])
    return lower.reshape(result, lower.shape(node.output))
