"""What is in a model: its inputs, its tables and who looks them up, and what a run costs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.analysis.batch_sizes import sizes_at
from graphopt.analysis.cost import Cost, costs, parameters
from graphopt.analysis.tables import Table, find_tables
from graphopt.errors import ArtifactError, SpecError
from graphopt.ir import dims, onnx_io
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType
from graphopt.serving.manifest import LIBRARY, PORTABLE, WEIGHTS, read_manifest


@dataclass(frozen=True)
class Port:
    """An input or output of a model; sizes that are text are free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class OpUse:
    """All nodes of one op together; a node with subgraphs answers for them.

    Attributes:
        flops, bytes: per call at the batch size of the inspection.
        uncounted: nodes whose cost is known only at run time.
    """

    op: str
    count: int
    flops: int
    bytes: int
    uncounted: int


@dataclass(frozen=True)
class Inspection:
    """A model at one batch size.

    Attributes:
        kind: "model" or "artifact".
        facts: where it comes from: producer, opset as written, file sizes; an artifact's target.
        sizes: the number put in for each symbolic size of the inputs; `n@x` is the size that input
            `x` calls `n` where that may differ from another's.
        weight_bytes: bytes of all constants.
        ops: by falling cost.
        nodes: how many there are of each op, subgraphs included.
    """

    name: str
    kind: str
    facts: dict[str, Any]
    batch: int
    sizes: dict[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tables: tuple[Table, ...]
    parameters: int
    weight_bytes: int
    ops: tuple[OpUse, ...]
    nodes: dict[str, int]

    @property
    def flops(self) -> int:
        """Operations of one call, as far as known."""
        return sum(op.flops for op in self.ops)

    @property
    def bytes(self) -> int:
        """Bytes that one call reads and writes, as far as known."""
        return sum(op.bytes for op in self.ops)

    @property
    def uncounted(self) -> dict[str, int]:
        """Nodes whose cost is known only at run time, by op."""
        return {op.op: op.uncounted for op in self.ops if op.uncounted}

    def to_json(self) -> str:
        """Everything, as indented JSON."""
        totals = {
            "flops_per_sample": self.flops / self.batch,
            "bytes_per_sample": self.bytes / self.batch,
            "uncounted": self.uncounted,
        }
        return json.dumps(dataclasses.asdict(self) | totals, indent=2) + "\n"


def inspect(
    model: str | Path | Graph, batch: int = 1, sizes: Mapping[str, int] | None = None
) -> Inspection:
    """Look into a model file, an artifact folder or a graph; nothing is run.

    Args:
        batch: stands for every symbolic size that some input has on its first axis.
        sizes: numbers for symbolic sizes by name. Those of neither kind are taken as 1.

    Raises:
        InvalidModelError, ArtifactError: it cannot be read.
        SpecError: a name in `sizes` is that of no size.
    """
    graph, name, kind, facts = _opened(model)
    _check_names(graph, sizes or {})
    chosen = sizes_at(graph, batch) | dict(sizes or {})
    constants = {id(v.const): v for v in graph.constants()}
    facts = {**graph.metadata, **facts}
    return Inspection(
        name,
        kind,
        facts,
        batch,
        chosen,
        tuple(_port(value.name, value) for value in graph.inputs),
        tuple(_port(name, value) for name, value in zip(graph.output_names, graph.outputs)),
        tuple(find_tables(graph)),
        parameters(constants.values()),
        sum(v.const.nbytes for v in constants.values() if v.const is not None),
        tuple(_op_uses(graph, chosen)),
        dict(Counter(node.op for node in graph.walk()).most_common()),
    )


def _check_names(graph: Graph, sizes: Mapping[str, int]) -> None:
    values = [*graph.inputs, *(value for node in graph.walk() for value in node.outputs)]
    types = (value.type for value in values)
    shapes = [t.shape for t in types if isinstance(t, TensorType) and t.shape]
    known = {name for shape in shapes for dim in shape for name in dims.symbols(dim)}
    for name in sizes:
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise SpecError(f"the model has no size called {name!r}; there are: {there}")


def _opened(model: str | Path | Graph) -> tuple[Graph, str, str, dict[str, Any]]:
    """The graph, its name, what kind of thing it was, and facts about that."""
    if isinstance(model, Graph):
        return model, model.name, "model", {}
    path = Path(model)
    if not path.is_dir():
        return onnx_io.load(path), path.name, "model", {"file_bytes": path.stat().st_size}
    manifest = read_manifest(path)
    sizes = {}
    for name in (LIBRARY, WEIGHTS, PORTABLE):
        if not (path / name).is_file():
            raise ArtifactError(f"{path / name}: missing; compile the model again")
        sizes[name] = (path / name).stat().st_size
    facts: dict[str, Any] = {key: manifest[key] for key in ("target", "oob") if key in manifest}
    if "gpu" in manifest:
        facts["launches"] = _launches(manifest["gpu"])
    return onnx_io.load(path / PORTABLE), path.name, "artifact", facts | {"file_bytes": sizes}


def _launches(gpu: Mapping[str, Any]) -> str:
    if gpu["straight"] and gpu.get("decisions"):
        deciding = ", ".join(gpu["decisions"])
        return f"one by one, no CUDA graphs: data decides what runs ({deciding})"
    if gpu["straight"]:
        return "small batches as CUDA graphs"
    return "by a virtual machine, no CUDA graphs: some sizes are known only at run time"


def _port(name: str, value: Value) -> Port:
    if not isinstance(value.type, TensorType):
        return Port(name, str(value.type), None)
    shape = value.type.shape
    known = None if shape is None else tuple(_label(dim) for dim in shape)
    return Port(name, value.dtype, known)


def _label(dim: Dim) -> int | str:
    """A size as the model's author wrote it, without the input that it belongs to."""
    return dim if isinstance(dim, int) else re.sub(r"@[^\s*+,)]+", "", str(dim))


def _op_uses(graph: Graph, sizes: Mapping[str, int]) -> list[OpUse]:
    found: dict[str, list[Cost | None]] = defaultdict(list)
    for node, cost in costs(graph, sizes):
        found[node.op].append(cost)
    uses = []
    for op, entries in found.items():
        total = sum((cost for cost in entries if cost is not None), Cost())
        moved = int(total.read) + int(total.written)  # type: ignore[arg-type]  # numbers by now
        uses.append(OpUse(op, len(entries), int(total.flops), moved, entries.count(None)))  # type: ignore
    return sorted(uses, key=lambda use: (-use.flops, -use.bytes, use.op))
