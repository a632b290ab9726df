"""Shape arithmetic replaced by its result, with symbolic sizes."""

from __future__ import annotations

from graphopt.ir.content import as_array
from graphopt.ir.graph import Graph, Node, Use
from graphopt.passes._sizes import Sizes, is_written, nearest_inputs, note_sizes, pieces_of, write
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter, erase_dead


class ResolveShapes(Pass):
    """Follows sizes through shape arithmetic, and keeps only the arithmetic that is needed.

    Needs sizes that follow from those of the inputs. Exporters compute each shape with `Shape →
    Gather → Mul → Concat`. Where every element is known it becomes a constant. Where elements are
    symbolic, it becomes `Shape(x)`, concatenated with constants, x being the nearest graph input it
    depends on that has these sizes, else the first value that does. Fidelity: exact.

    Before:
        (float[N,4] x) => (float[N,2] y, int64[1] k)
        <int64[1] two = {2}, int64 i = {0}, int64 j = {1}, int64[1] axis = {0}> {
            h = Relu(x)
            s = Shape(h)
            n = Gather(s, i)
            m = Gather(s, j)
            n1 = Unsqueeze(n, axis)
            k = Unsqueeze(m, axis)
            t = Concat<axis=0>(n1, two)
            y = ConstantOfShape(t)
        }

    After:
        (float[N,4] x) => (float[N,2] y, int64[1] k) <int64[1] two = {2}, int64[1] k = {4}> {
            n = Shape<start=0, end=1>(x)
            t = Concat<axis=0>(n, two)
            y = ConstantOfShape(t)
        }
    """

    name = "resolve-shapes"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        before = sum(ctx.stats.hits.values())
        _resolve(graph, {}, ctx)
        return sum(ctx.stats.hits.values()) > before


def _resolve(graph: Graph, sizes: Sizes, ctx: PassContext) -> None:
    """Resolve the values of `graph`; `sizes` says where each size can be read, outside of it."""
    sizes = dict(sizes)
    for value in graph.inputs:
        note_sizes(value, sizes)
    for node in graph.nodes:
        for subgraph in node.subgraphs:
            _resolve(subgraph, sizes, ctx)
        if node.outputs and node.output.content is not None and node.output.uses:
            _resolve_value(node, sizes, ctx)
        for value in node.outputs if node.graph is not None else ():
            note_sizes(value, sizes)


def _resolve_value(node: Node, sizes: Sizes, ctx: PassContext) -> None:
    value = node.output
    assert node.graph is not None and value.content is not None
    array = as_array(value.content, value.dtype)
    if array is not None:
        node.graph.replace_uses(value, node.graph.constant(array))
        erase_dead(node.graph, [node])
        ctx.stats.hits["known_to_constant"] += 1
        return
    if value.content.ndim > 1 or not any(_leaves_arithmetic(use) for use in value.uses):
        return
    pieces = pieces_of(value.content, sizes | nearest_inputs(value))
    if isinstance(pieces, str):
        ctx.stats.refuse("sizes_to_shape", node, pieces)
        return
    if not is_written(value, pieces):
        rewriter = Rewriter(node, [node])
        node.graph.replace_uses(value, write(rewriter, value, pieces))
        erase_dead(node.graph, [node])
        ctx.stats.hits["sizes_to_shape"] += 1


def _leaves_arithmetic(use: Use) -> bool:
    """True if the reader is more than one more step of shape arithmetic."""
    return isinstance(use.user, Graph) or use.user.output.content is None
