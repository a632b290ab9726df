"""Dense layers whose operands are rounded to bfloat16: the kernel does it, or that before it."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import dtype_to_numpy
from graphopt.rewrite import NoMatch, Rewriter, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN


def take_rounding(layer: Node) -> bool:
    """Let a Dense read its data as they are before casts to bfloat16 and back, if it has such.

    True if it has, and its weights are numbers of bfloat16 too: then rounding both in the kernel
    gives the same products.
    """
    weights, data = layer.const(1), layer.inputs[0]
    if weights is None or weights.dtype != np.float32 or data is None or layer.graph is None:
        return False
    source = _before_rounding(data)
    narrow = weights.astype(dtype_to_numpy("bfloat16")).astype(np.float32)
    if source is None or not np.array_equal(narrow, weights):
        return False
    layer.graph.set_input(layer, 0, source)
    return True


def _before_rounding(value: Value) -> Value | None:
    """What is float32 where `value` is it cast to bfloat16 and back."""
    back = value.producer
    narrow = back.inputs[0] if back is not None and back.op == "Cast" else None
    if narrow is None or narrow.dtype != "bfloat16" or narrow.producer is None:
        return None
    source = narrow.producer.inputs[0] if narrow.producer.op == "Cast" else None
    return source if source is not None and source.dtype == "float32" else None


@rule(Pattern("Dense", (var("x"), ...), domain=DOMAIN))
def floats_to_words(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Dense(Dense(x, …; words), …; words) -> Dense(Dense(x, …; words, result=words), …; words)"""
    value, words = node.output, node.attrs.get("words")
    if words is None or "result" in node.attrs or value.is_graph_output:
        return NoMatch("it does not multiply bfloat16")
    for user, slot in value.uses:
        if not isinstance(user, Node) or user.op != node.op:
            return NoMatch("what reads it is not only layers")
        if user.attrs.get("words") != words or slot != 0:
            return NoMatch("not all layers that read it round it to bfloat16")
    attrs = {**node.attrs, "result": words}
    return rw.insert("Dense", node.inputs, attrs, domain=DOMAIN).output
