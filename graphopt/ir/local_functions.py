"""Model-local functions are inlined: the rest of graphopt sees calls of ops.

A function may be written in another opset than the model. ONNX's inliner refuses that, so the nodes
of such a body say which opset they are of, in their domain, until they are read.
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx.inliner
from onnx import FunctionProto, ModelProto, NodeProto

from graphopt.errors import InvalidModelError
from graphopt.ir import schema
from graphopt.ir.model_check import OLDEST_OPSET, check_texts

MAX_NODES = 1_000_000
"""Functions that call others twice grow as powers of two; a file of a page could fill memory."""

_Name = tuple[str, str]
_OF_OPSET = "ai.onnx@"


def domain_and_opset(domain: str | None, opset: int) -> tuple[str, int]:
    """The domain of a node and the opset it is written in, which is `opset` unless it says so."""
    written = (domain or "").removeprefix(_OF_OPSET)
    if written != domain and written.isdecimal():
        return "", int(written)
    return ("" if domain in (None, "ai.onnx") else domain or ""), opset


def inline_functions(
    model: ModelProto, keep: str, opsets: Mapping[str, int]
) -> tuple[ModelProto, int]:
    """Replace calls of model-local functions by their bodies, except those of domain `keep`.

    Args:
        opsets: those of the model, the standard one under "".

    Returns:
        the model, and the newest opset that a node of it is written in.

    Raises:
        InvalidModelError: a function calls itself, a call does not fit its function, the bodies
            are too many nodes, or a function's opset is not one that is read.
    """
    foreign = {(f.domain, f.name): f for f in model.functions if f.domain != keep}
    check_texts(text for names in foreign for text in names)
    if not foreign:
        return model, opsets[""]
    _check_growth(model, foreign)
    aligned = _in_one_opset(model, foreign, opsets)
    try:
        inlined = onnx.inliner.inline_selected_functions(aligned, list(foreign))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        line = re.sub(".*Assertion `.*` failed: ", "", str(error).strip().splitlines()[0])
        raise InvalidModelError(f"its local functions cannot be inlined: {line}") from None
    return inlined, max(_standard(f, opsets[""]) for f in (*foreign.values(), model))


def _standard(source: FunctionProto | ModelProto, default: int) -> int:
    """The version of the standard domain that a function or the model is written in."""
    imports = {i.domain: i.version for i in source.opset_import}
    return imports.get("", imports.get("ai.onnx", default))


def _walk(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _walk(graph.node)


def _check_growth(model: ModelProto, functions: Mapping[_Name, FunctionProto]) -> None:
    """Count the nodes that all calls together become."""
    called = {
        name: {key for n in _walk(f.node) if (key := (n.domain, n.op_type)) in functions}
        for name, f in functions.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(called).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join("::".join(name) for name in error.args[1])
        raise InvalidModelError(f"local functions must not be recursive: {cycle}") from None
    sizes: dict[_Name, int] = {}
    for name in order:
        body = _walk(functions[name].node)
        sizes[name] = sum(sizes.get((n.domain, n.op_type), 1) for n in body)
    total = sum(sizes.get((n.domain, n.op_type), 1) for n in _walk(model.graph.node))
    if total > MAX_NODES:
        raise InvalidModelError(
            f"its local functions are {total:,} nodes once inlined; up to {MAX_NODES:,} are read"
        )


def _in_one_opset(
    model: ModelProto, functions: Mapping[_Name, FunctionProto], opsets: Mapping[str, int]
) -> ModelProto:
    """The model with functions that import what it imports, and nodes that say where they do not.

    Versions of a domain whose ops are local functions mean nothing.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    own = {domain for domain, _ in functions}
    known = {i.domain: i.version for i in copy.opset_import}
    if not known.keys() & {"", "ai.onnx"}:
        copy.opset_import.add(domain="", version=opsets[""])
    for function in copy.functions:
        if (function.domain, function.name) not in functions:
            continue
        written = _standard(function, opsets[""])
        if not OLDEST_OPSET <= written <= schema.newest_opset():
            name = f"{function.domain}::{function.name}"
            raise InvalidModelError(
                f"local function {name} is of opset {written}, which is unknown"
            )
        for imported in function.opset_import:
            if imported.domain in ("", "ai.onnx"):
                imported.version = opsets[""]
            elif imported.domain in own:
                imported.version = known.setdefault(imported.domain, imported.version)
        if written != opsets[""]:
            for node in _walk(function.node):
                if node.domain in ("", "ai.onnx") and (node.domain, node.op_type) not in functions:
                    node.domain = f"{_OF_OPSET}{written}"
    return copy
