"""Which changes make a layer slower, timed on the target without its tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from graphopt.accuracy.datasets import Dataset
from graphopt.accuracy.pace import batches_of
from graphopt.accuracy.traces import drop_unused
from graphopt.accuracy.workbench import Workbench
from graphopt.analysis.lookups import lookups_of
from graphopt.errors import ArtifactError, InputError, UnsupportedOpError
from graphopt.ir.graph import Graph, Node, Value
from graphopt.pipeline.base import Proposal
from graphopt.serving.signature import Signature

NOISE = 1.1  # a smaller ratio decides nothing, so that the same command makes the same model
SECONDS = 0.1  # for each model and number of rows
TURN = 4  # runs of one model after the other, of which the first one warms up caches
LEAST = 5  # turns, however long they take


class Timed(Protocol):
    """An artifact that tells how long each of its kernels takes; see `graphopt.Artifact`."""

    @property
    def manifest(self) -> Mapping[str, Any]: ...
    @property
    def signature(self) -> Signature: ...
    def profile(self, feeds: Mapping[str, Any]) -> np.ndarray: ...


@dataclass(eq=False)
class Stopwatch:
    """Holds the kernels of changed layers against those of the layers as they were.

    What lookups give is computed beforehand: nothing that is timed changes them, and with their
    tables a model can be too large to be compiled twice.

    Attributes:
        build: compiles a graph for the target, which is this machine.
        multiplies_bytes: layers in float32 will multiply bytes, so they are timed so where a
            change leaves open how layers multiply.
    """

    build: Callable[[Graph], Timed]
    multiplies_bytes: bool = False
    _known: dict[tuple[str, str], bool] = field(default_factory=dict, repr=False)

    def slower(
        self,
        graph: Graph,
        kept: Sequence[Proposal],
        tried: Sequence[Proposal],
        data: Dataset,
        bench: Workbench,
    ) -> list[Proposal]:
        """Those of `tried` whose layers take longer than they would with `kept` alone.

        Nothing is known of models that cannot be compiled, or have loops.
        """
        if not all((p.site, p.what) in self._known for p in tried):
            self._time(graph, kept, tried, data, bench)
        return [p for p in tried if self._known.get((p.site, p.what))]

    def _time(
        self,
        graph: Graph,
        kept: Sequence[Proposal],
        tried: Sequence[Proposal],
        data: Dataset,
        bench: Workbench,
    ) -> None:
        makers = {v.name: node for node in graph.walk() for v in node.outputs}
        nodes = {(p.site, p.what): {*makers[p.site].where} for p in tried if p.site in makers}
        cut = [v for node in graph.nodes if lookups_of(node) for v in node.outputs]
        in_bytes = self.multiplies_bytes and not any(p.for_speed for p in tried)
        ratios: dict[tuple[str, str], list[float]] = {change: [] for change in nodes}
        try:
            models = [
                self.build(_changed(graph, changes, cut, in_bytes))
                for changes in (kept, [*kept, *tried])
            ]
            for feeds in _feeds(graph, cut, data, bench):
                before, after = map(_times_of, models, _profiles(models, feeds))
                for change, names in nodes.items():
                    pair = [sum(t for s, t in kernels if s & names) for kernels in (before, after)]
                    if all(pair):
                        ratios[change].append(pair[1] / pair[0])
        except (ArtifactError, InputError, UnsupportedOpError):
            return
        for change, found in ratios.items():
            self._known[change] = bool(found) and float(np.log(found).mean()) > np.log(NOISE)


def _changed(
    graph: Graph, changes: Sequence[Proposal], cut: Sequence[Value], in_bytes: bool
) -> Graph:
    """A copy of `graph` with `changes`, which is given what the values in `cut` are."""
    values: dict[Value, Value] = {}
    copy = graph.clone(values)
    for node in copy.walk():
        node.origin = node.where
    for change in changes:
        change.apply(copy, values)
    given = [copy.add_input(value.name, value.type) for value in cut]
    for value, instead in zip(cut, given):
        copy.replace_uses(values[value], instead)
    computed = [k for k, value in enumerate(copy.outputs) if value not in given]
    copy.set_outputs([copy.outputs[k] for k in computed], [copy.output_names[k] for k in computed])
    drop_unused(copy)
    if in_bytes:
        for node in copy.walk():
            multiply_bytes(node)
    return copy


def _feeds(
    graph: Graph, cut: Sequence[Value], data: Dataset, bench: Workbench
) -> Iterator[dict[str, np.ndarray]]:
    """All that a graph without lookups may take, for several numbers of rows."""
    copies: dict[Value, Value] = {}
    copy = graph.clone(copies)
    wanted = dict(zip([copy.fresh_name("cut") for _ in cut], cut))
    if wanted:
        copy.set_outputs([copies[value] for value in wanted.values()], list(wanted))
    model = bench.load(copy)
    for feeds in batches_of(data):
        found = model.run(feeds)
        yield {**feeds, **{value.name: found[name] for name, value in wanted.items()}}


def _profiles(models: Sequence[Timed], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The median nanoseconds of each kernel of models that take turns."""
    given = [{spec.name: feeds[spec.name] for spec in m.signature.inputs} for m in models]
    taken: list[list[np.ndarray]] = [[] for _ in models]
    until = time.perf_counter() + SECONDS * len(models)
    while len(taken[0]) < LEAST * TURN or time.perf_counter() < until:
        for model, own, runs in zip(models, given, taken):
            runs += [model.profile(own) for _ in range(TURN)][1:]
    return [np.median(runs, axis=0) for runs in taken]


def _times_of(model: Timed, times: np.ndarray) -> list[tuple[set[str], float]]:
    """For each kernel the source nodes that it computes, and how long it takes."""
    sources = [set(entry["sources"]) for entry in model.manifest["program"]]
    return [(names, float(time)) for names, time in zip(sources, times)]


def multiply_bytes(layer: Node) -> None:
    """Let a layer with float32 weights round its data and weights to 8 bits, in whatever range.

    Only its time is right then.
    """
    graph, weights, data = layer.graph, layer.const(1), layer.input(0)
    if layer.op not in ("Gemm", "MatMul") or graph is None or weights is None or data is None:
        return
    if weights.dtype != np.float32 or weights.ndim != 2 or layer.attr("transA", 0):
        return
    if data.const is not None or data.dtype != "float32":
        return
    scale = np.float32(np.abs(weights).max(initial=0) / 127 or 1.0)
    codes = graph.constant(np.rint(weights / scale).astype(np.int8))
    axis = 0 if layer.attr("transB", 0) else 1
    row = graph.constant(np.full(weights.shape[axis], scale))
    restored = graph.insert(
        "DequantizeLinear", [codes, row], {"axis": axis}, before=layer, origin=layer.origin
    )
    graph.set_input(layer, 1, restored.output)
    steps = [graph.constant(np.array(1 / 16, np.float32)), graph.constant(np.array(128, np.uint8))]
    for op in ("QuantizeLinear", "DequantizeLinear"):
        data = graph.insert(op, [data, *steps], before=layer, origin=layer.origin).output
    graph.set_input(layer, 0, data)
