"""`graphopt explain`."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from graphopt.cli import console, options

if TYPE_CHECKING:
    from graphopt.explanation import Explanation, SourceNode

MOST_PLACES = 4


def explain(
    model: options.Model,
    target: options.Target = "cpu",
    level: options.Level = None,
    passes: options.Passes = None,
    as_json: options.Json = False,
) -> None:
    """Show what becomes of each node of a model.

    Says whether it was kept, folded, removed or fused, into what and by which pass, and why rules
    left alone what was kept. Nothing is written.
    """
    pipeline = options.pipeline(level, passes)
    from graphopt import explanation

    with console.progress(quiet=False, verbose=False) as tell:
        found = explanation.explain(model, target, passes=pipeline, progress=tell)
    if as_json:
        print(found.to_json(), end="")
    else:
        _print(found)


def _print(found: Explanation) -> None:
    out = console.stdout()
    rows = [(_called(node), _became(node), ", ".join(node.by)) for node in found.nodes]
    out.print(console.table(("source node", "became", "by"), rows))
    _print_reasons(found)
    fates = Counter(node.fate.value for node in found.nodes)
    left = ", ".join(f"{op.removeprefix('graphopt.')} {n}" for op, n in found.left.items())
    out.print(f"\nsource  {len(found.nodes)} nodes: {_counts(fates)}", soft_wrap=True)
    out.print(f"result  {sum(found.left.values())} nodes: {left}", soft_wrap=True)


def _print_reasons(found: Explanation) -> None:
    """Why rules left what is kept, with the nodes that each reason holds for."""
    places: dict[str, list[str]] = defaultdict(list)
    for node in found.nodes:
        for reason in node.reasons:
            places[reason].append(node.name)
    out = console.stdout()
    if places:
        out.print("\nWhy rules left what is kept", style="bold")
    for reason, names in places.items():
        more = len(names) - MOST_PLACES
        rest = f" and {more} more (--json lists them)" if more > 0 else ""
        out.print(f"{reason}\n    {', '.join(names[:MOST_PLACES])}{rest}", soft_wrap=True)


def _called(node: SourceNode) -> str:
    """The name of a node, with its op where the exporter has not put that into the name."""
    named = node.op.rpartition("::")[2].lower() in node.name.lower()
    return node.name if named else f"{node.name} ({node.op})"


def _became(node: SourceNode) -> str:
    ops = ", ".join(op.removeprefix("graphopt.") for op in node.into)
    if node.fate.value == "fused":
        return f"{ops} of {node.others + 1}"
    return ops if node.fate.value == "rewritten" else node.fate.value


def _counts(fates: Counter[str]) -> str:
    return ", ".join(f"{count} {fate}" for fate, count in fates.most_common())
