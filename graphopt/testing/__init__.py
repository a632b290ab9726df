"""For tests of passes, converters and kernels, the project's own and its users'.

    from graphopt.testing import assert_rewrites

    assert_rewrites(
        FuseGemm(), "(float[N,4] x) => (float[N,8] y) <float[4,8] w, float[8] b> { m = MatMul(x, w)
        y = Add(m, b) }", "(float[N,4] x) => (float[N,8] y) <float[4,8] w, float[8] b> { y = Gemm(x,
        w, b) }",
    )

Graphs are written in ONNX's text form. A weight that is declared and not set gets random values,
the same ones in every text that gives it the same name and shape.
"""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx.parser

from graphopt.checking.random_inputs import random_inputs
from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.printer import to_text
from graphopt.ir.verifier import verify
from graphopt.machine import sums_bytes_exactly
from graphopt.ops.dynamic_matmul import EXACT_LEVELS, LEVELS
from graphopt.passes._execution import session
from graphopt.pipeline.base import Fidelity, Pass, PassContext, Proposal

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def parse(text: str, opset: int = 18) -> Graph:
    """The graph of an ONNX text: a whole model, or from the graph's name or signature on.

    Raises:
        ValueError: the text does not parse, or a weight's shape is not static.
    """
    text = text.strip()
    if text.startswith("("):
        text = "g " + text
    if not text.startswith("<"):
        imports = f'"": {opset}, "graphopt": 1'
        text = f"<ir_version: 9, opset_import: [{imports}]>\n{text}"
    try:
        model = onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        raise ValueError(f"the graph's text does not parse: {error}") from None
    _fill_weights(model.graph)
    model.producer_name = "graphopt"  # so that one name means one size
    return onnx_io.from_proto(model)


def _fill_weights(graph: onnx.GraphProto) -> None:
    """Make an initializer of every declared value that nothing computes."""
    computed = {name for node in graph.node for name in node.output}
    computed |= {tensor.name for tensor in graph.initializer}
    positive = {n.input[4] for n in graph.node if n.op_type == "BatchNormalization"}
    for info in graph.value_info:
        if info.name in computed:
            continue
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        if any(not d.HasField("dim_value") for d in info.type.tensor_type.shape.dim):
            raise ValueError(f"the weight {info.name!r} needs a static shape")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        array = _random_weight(info.name, shape, dtype)
        array = np.abs(array) if info.name in positive else array
        graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))


def _random_weight(name: str, shape: list[int], dtype: np.dtype[Any]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if dtype.kind in "iu":
        return rng.integers(0, 4, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.normal(0.0, 0.5, shape).astype(dtype)


# ------------------------------------------------------------------------ running


def run_onnxruntime(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of `graph` in ONNX Runtime, its own optimizations off: each op as it stands."""
    # Prepacked weights take other kernels, which sum in another order than for computed operands.
    engine = session(onnx_io.to_proto(graph).SerializeToString(), disable_prepacking="1")
    used = {value.name for value in engine.get_inputs()}
    given = {name: array for name, array in feeds.items() if name in used}
    return dict(zip(graph.output_names, engine.run(graph.output_names, given)))


def run_compiled(
    model: onnx.ModelProto | Graph,
    feeds: Mapping[str, np.ndarray],
    oob: Literal["error", "clamp", "zero"] = "error",
) -> dict[str, np.ndarray]:
    """The outputs of a model compiled for this machine, without any pass having run on it.

    Args:
        model: sizes left symbolic in it stay symbolic in the compiled code.
        feeds: an array per input.

    Raises:
        GraphoptError: it cannot be compiled, or an id is out of range.
    """
    return Compiled(model, oob)(feeds)


class Compiled:
    """A model compiled for this machine, to be called with a dict of arrays as often as needed.

    Attributes:
        calls: how many kernels it calls where nothing loops.
    """

    def __init__(
        self, model: onnx.ModelProto | Graph, oob: Literal["error", "clamp", "zero"] = "error"
    ) -> None:
        from graphopt.serving.runtime import Convention, load_program
        from graphopt.serving.signature import TensorSpec
        from graphopt.targets.cpu.target import CpuTarget

        graph = model if isinstance(model, Graph) else onnx_io.from_proto(model)
        self._inputs = [value.name for value in graph.inputs]
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "model.so"
            compiled = CpuTarget.parse("").compile(graph, library, oob, lambda stage: None)
            outputs = [
                TensorSpec(name, value.dtype, tuple(map(str, value.tensor.dims)))
                for name, value in zip(graph.output_names, graph.outputs)
            ]
            self.calls: int = compiled.kernels["calls"]
            weights = [_owned(array) for array in compiled.constants]
            sizes, late = compiled.facts["sizes"], compiled.facts["late_outputs"]
            how = None if sizes is None else Convention(sizes, outputs, late=late)
            self._program = load_program(library, weights, how)
        self._outputs = [(spec.name, spec.numpy_dtype) for spec in outputs]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        from graphopt.serving.runtime import passed

        results = self._program(passed([_owned(feeds[name]) for name in self._inputs]))
        return {name: array.view(dtype) for (name, dtype), array in zip(self._outputs, results)}


def _owned(array: np.ndarray) -> np.ndarray:
    """A copy aligned as compiled code demands, which may also be handed over through DLPack."""
    from graphopt.serving.signature import aligned_copy

    return aligned_copy(np.asarray(array))


# --------------------------------------------------------------------- assertions


def assert_same_outputs(
    actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], fidelity: Fidelity
) -> None:
    """Fail unless outputs agree as `fidelity` demands; EXACT means the same bits, LOSSY nothing.

    A NaN equals any NaN: its payload is not part of an answer.
    """
    assert list(actual) == list(expected)
    rtol, atol = fidelity.tolerance
    for name, wanted in expected.items():
        found = actual[name]
        assert found.dtype == wanted.dtype, f"{name}: {found.dtype}, expected {wanted.dtype}"
        assert found.shape == wanted.shape, f"{name}: {found.shape}, expected {wanted.shape}"
        if fidelity is Fidelity.EXACT or wanted.dtype.kind not in "fV":
            np.testing.assert_array_equal(found, wanted, name)
            if wanted.dtype.kind == "f":
                signs = np.signbit(found), np.signbit(wanted)
                np.testing.assert_array_equal(*signs, f"{name}: sign")
        elif fidelity is not Fidelity.LOSSY:
            np.testing.assert_allclose(found, wanted, rtol, atol, err_msg=name)


def assert_rewrites(
    step: Pass, before: str, after: str, *, sizes: Mapping[str, int] | None = None
) -> PassContext:
    """Check that `step` turns the graph `before` into `after`.

    Compares the dumps (weights by type only: they may be new), the outputs of `before` as given and
    as rewritten at the fidelity of the pass, the verifier's opinion, and that a second run changes
    nothing.

    Returns:
        the context of the first run, with its statistics.
    """
    graph, expected = parse(before), parse(after)
    ctx = assert_keeps_outputs(step, graph, sizes=sizes)
    found, wanted = dump(graph), dump(expected)
    assert found == wanted, f"found:\n{found}\nexpected:\n{wanted}"
    return ctx


def assert_keeps_outputs(
    step: Pass, graph: Graph, *, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> PassContext:
    """Run `step` on `graph` in place; check all that `assert_rewrites` does, except the result."""
    feeds = random_inputs(graph, sizes, seed)
    wanted = run_onnxruntime(graph, feeds)
    signature = _signature(graph)
    source, ctx = to_text(graph), PassContext(budget=Lavish())
    changed = step.run(graph, ctx)
    verify(graph)
    assert _signature(graph) == signature, f"{step.name} changed what the model takes or gives"
    result = to_text(graph)
    assert changed or source == result, f"{step.name} changed the graph and did not say so"
    assert_same_outputs(run_onnxruntime(graph, feeds), wanted, step.fidelity)
    assert not step.run(graph, PassContext(budget=Lavish())), (
        f"a second run of {step.name} changes something"
    )
    assert to_text(graph) == result
    return ctx


class Lavish:
    """A budget that allows every site the proposal that saves most, measured on random inputs."""

    multiplies_bfloat16 = True
    row_levels = LEVELS if sums_bytes_exactly() else EXACT_LEVELS

    def choose(
        self, graph: Graph, proposals: Sequence[Proposal], share: float = 1.0
    ) -> list[Proposal]:
        """The most saving proposal of every site, the first of equal ones."""
        best: dict[str, Proposal] = {}
        for proposal in sorted(proposals, key=lambda p: -p.saves):
            best.setdefault(proposal.site, proposal)
        return list(best.values())

    def observe(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
        """The values for one set of random inputs."""
        copies: dict[Value, Value] = {}
        copy = graph.clone(copies)
        names = [copy.fresh_name("observed") for _ in values]
        copy.set_outputs([copies[value] for value in values], names)
        return [[array] for array in run_onnxruntime(copy, random_inputs(copy)).values()]

    def traced(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
        """The same: these are all the requests there are."""
        return self.observe(graph, values) if values else []


def _signature(graph: Graph) -> list[Any]:
    """What users rely on; how sizes are called is not part of it."""
    inputs = [(v.name, v.dtype, v.rank) for v in graph.inputs]
    return [*inputs, *graph.output_names, *((v.dtype, v.rank) for v in graph.outputs)]


def assert_unchanged(step: Pass, text: str, reason: str | None = None) -> None:
    """Check that `step` leaves a graph alone, with a refusal that contains `reason` if given."""
    graph = parse(text)
    source, ctx = to_text(graph), PassContext(budget=Lavish())
    changed = step.run(graph, ctx)
    assert to_text(graph) == source
    assert not changed, f"{step.name} says it changed the graph"
    reasons = [why for _, _, why in ctx.stats.refusals]
    if reason is not None:
        assert any(reason in why for why in reasons), f"no refusal says {reason!r}: {reasons}"


def graphs(max_steps: int = 10) -> "SearchStrategy[Graph]":
    """A hypothesis strategy: random small graphs like those that recommenders are exported as.

    They take `x` (float32 [N, 4]) and `ids` (int64 [N, 3]). Needs hypothesis.
    """
    from graphopt.testing import random_graphs

    return random_graphs.graphs(max_steps)


def dump(graph: Graph) -> str:
    """The graph's text, independent of the order of unrelated nodes and of made-up size names."""
    graph = graph.clone()
    for node in _by_use(graph):
        graph.move(node, None)
    numbers: dict[str, str] = {}
    return re.sub(
        r"\bd\d+\b", lambda m: numbers.setdefault(m.group(), f"d{len(numbers)}"), to_text(graph)
    )


def _by_use(graph: Graph) -> list[Node]:
    """The nodes in depth-first order from the outputs, then those that no output needs."""
    order: dict[Node, None] = {}

    def visit(start: Node) -> None:
        pending = [(start, iter(_producers(start, graph)))]
        while pending:
            node, producers = pending[-1]
            following = next((p for p in producers if p not in order), None)
            if following is None:
                order[node] = None
                pending.pop()
            else:
                pending.append((following, iter(_producers(following, graph))))

    for start in [v.producer for v in graph.outputs] + list(graph.nodes):
        if start is not None and start not in order:
            visit(start)
    return list(order)


def _producers(node: Node, graph: Graph) -> list[Node]:
    """The nodes of `graph` that `node` reads from, through its subgraphs too."""
    read = node.operands
    for subgraph in node.subgraphs:
        read += [v for inner in subgraph.walk() for v in inner.inputs if v is not None]
        read += [v for s in [subgraph, *_inner_graphs(subgraph)] for v in s.outputs]
    return [v.producer for v in read if v.producer is not None and v.producer.graph is graph]


def _inner_graphs(graph: Graph) -> list[Graph]:
    return [subgraph for node in graph.walk() for subgraph in node.subgraphs]
