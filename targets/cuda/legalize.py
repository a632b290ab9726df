"""Rewrites a graph for the kernels of the CUDA target."""

from __future__ import annotations

from graphopt.ir.graph import Graph, Node
from graphopt.rewrite import RewriteStats, Rule, rewrite
from graphopt.targets.cpu import DOMAIN, dense, layer_norm, packed_weights, quantized_dense
from graphopt.targets.cpu.kernels.row_codes import RowQuantization
from graphopt.targets.cuda import coded_rows, lookups
from graphopt.targets.cuda.kernels.gemm import Math, math_for
from graphopt.targets.cuda.ops.interaction import is_suited
from graphopt.targets.relax.expand import expand_function
from graphopt.targets.zero_codes import tell_lookups

# In this order: a lookup that a concatenation takes in must not have become a kernel of its own.
_STEPS: tuple[tuple[Rule, ...], ...] = (
    lookups.CONCATENATED,
    lookups.ALONE,
    (*dense.RULES, *layer_norm.RULES),
)


def legalize(graph: Graph, math: Math, multiplies_bytes: bool = True) -> None:
    """Turn what there are kernels for into ops of our own, in place.

    Args:
        math: how dense layers multiply that the model does not round to 8 bits.
        multiplies_bytes: what the model rounds to 8 bits multiplies so, and not in float32.
    """
    dynamic = quantized_dense.dynamic_to_dense
    if not multiplies_bytes:
        dynamic = quantized_dense.dynamic_to_floats
    rewrite(graph, (dynamic,), RewriteStats())
    for node in list(graph.walk()):
        if not is_suited(node):
            expand_function(node)
    rewrite(graph, (packed_weights.stored_to_dequantized,), RewriteStats())
    looked_up = (packed_weights.bias_to_floats, packed_weights.rows_to_floats)
    rewrite(graph, looked_up, RewriteStats())
    tell_lookups(graph)
    rewrite(graph, (packed_weights.codes_in_bytes,), RewriteStats())
    if multiplies_bytes:
        rewrite(graph, (quantized_dense.quantized_to_dense,), RewriteStats())
    for rules in _STEPS:
        rewrite(graph, rules, RewriteStats())
    coded_rows.insert(dense_layers(graph))
    for layer in dense_layers(graph):
        layer.attrs["math"] = _math(layer, math)


def _math(layer: Node, math: Math) -> Math:
    """How a layer multiplies, `math` being for all that the model does not round to 8 bits."""
    weights, rounding = layer.const(1), layer.attrs.get("data")
    assert weights is not None
    if rounding is None:
        return math_for(weights, math)
    return "Codes" if isinstance(rounding, RowQuantization) else "Int8"


def dense_layers(graph: Graph) -> list[Node]:
    """The dense layers of a legalized graph."""
    return [node for node in graph.walk() if node.op == f"{DOMAIN}::Dense"]
