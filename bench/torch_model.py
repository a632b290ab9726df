"""An ONNX model in PyTorch, as one would write it there: tables, linear layers, bags, attention.

    module = to_torch("model.onnx").eval()
    outputs = module(*tensors)        # in the order of `module.input_names`

The model is optimized first (`graphopt.optimize`), so PyTorch gets what was found on the graph:
loops that pool rows become `embedding_bag`, unrolled attention `scaled_dot_product_attention`. Each
op is then one call or a few, and what can be fused is left to `torch.compile`. Ids
are taken to be valid and not negative, as `torch.nn.Embedding` does.
"""

from __future__ import annotations

from pathlib import Path

import torch_fused_ops  # noqa: F401  registers its rules
import torch_ops  # noqa: F401
from torch import fx
from torch_builder import RULES, Builder, Untranslatable

import graphopt
from graphopt.ir.graph import Graph

__all__ = ["Untranslatable", "to_torch"]


def to_torch(model: str | Path | Graph) -> fx.GraphModule:
    """The model as a module: it takes the inputs in order, and gives a tuple of the outputs.

    Their names are its `input_names` and `output_names`.

    Args:
        model: a model file, or a graph, which is translated as it is.

    Raises:
        Untranslatable: an op, or a form of one, is not covered.
    """
    graph = model if isinstance(model, Graph) else graphopt.optimize(model)
    builder = Builder()
    for value in graph.inputs:
        builder.define(value, builder.graph.placeholder(f"x{len(builder.terms)}"))
    for node in graph.nodes:
        rule = RULES.get(node.op)
        if rule is None:
            raise Untranslatable(f"no translation of {node.op}")
        builder.define_all(node.outputs, rule(builder, node))
    builder.graph.output(tuple(builder[value] for value in graph.outputs))
    builder.graph.eliminate_dead_code()
    module = fx.GraphModule(builder.root, builder.graph)
    module.input_names = [value.name for value in graph.inputs]
    module.output_names = list(graph.output_names)
    return module
