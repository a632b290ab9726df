"""The `graphopt` op domain: fused ops, each with its meaning as an ONNX function."""

from __future__ import annotations

import onnx

from graphopt.ir.graph import Graph


def function_protos(graph: Graph) -> list[onnx.FunctionProto]:
    """The local functions for the ops of our domain that `graph` uses."""
    return []
