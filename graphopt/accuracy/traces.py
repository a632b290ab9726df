"""A log of requests: what a graph's values are on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from graphopt.accuracy import datasets
from graphopt.accuracy.datasets import Dataset
from graphopt.accuracy.workbench import Workbench
from graphopt.errors import InputError, TraceError
from graphopt.ir.graph import Graph, Value
from graphopt.serving.signature import Signature, TensorSpec


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests, in a file as `datasets` describes or as a dataset; they need no labels.

    Only the inputs that ids come from need be there.
    """

    source: str | Path | Dataset
    columns: Mapping[str, Sequence[str]]
    _known: dict[Signature, Dataset] = field(default_factory=dict, repr=False)

    def values(
        self, graph: Graph, wanted: Sequence[Value], bench: Workbench
    ) -> list[list[np.ndarray]]:
        """What each of `wanted` is, batch by batch.

        Raises:
            TraceError: the requests lack an input that these depend on, or do not fit it.
        """
        copy = _only(graph, wanted)
        specs = (TensorSpec(v.name, v.dtype, _shape(v)) for v in copy.inputs)
        names, model = [value.name for value in copy.inputs], bench.load(copy)
        try:
            data = self._read(Signature(tuple(specs), ()))
            found = [model.run({name: batch[name] for name in names}) for batch in data.batches]
        except InputError as error:
            raise TraceError(f"the trace does not fit the model: {error}") from None
        return [[outputs[name] for outputs in found] for name in copy.output_names]

    def _read(self, signature: Signature) -> Dataset:
        """The requests; passes ask for the same inputs again and again."""
        if isinstance(self.source, Dataset):
            missing = {s.name for s in signature.inputs} - self.source.batches[0].keys()
            if missing:
                raise InputError(f"it has no {', '.join(sorted(missing))}")
            return self.source
        if signature not in self._known:
            known = {spec.name for spec in signature.inputs}
            columns = {name: parts for name, parts in self.columns.items() if name in known}
            self._known[signature] = datasets.read(self.source, signature, columns=columns)
        return self._known[signature]


def _only(graph: Graph, wanted: Sequence[Value]) -> Graph:
    """A copy of `graph` that computes `wanted` and takes what that depends on."""
    copies: dict[Value, Value] = {}
    copy = graph.clone(copies)
    outputs = [copies[value] for value in wanted]
    copy.set_outputs(outputs, [copy.fresh_name("traced") for _ in wanted])
    drop_unused(copy)
    return copy


def drop_unused(graph: Graph) -> None:
    """Remove nodes and inputs that no output depends on."""
    for node in reversed(list(graph.nodes)):
        if not any(value.uses for value in node.outputs):
            graph.erase(node)
    graph.inputs = [value for value in graph.inputs if value.uses]


def _shape(value: Value) -> tuple[int | str, ...] | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
