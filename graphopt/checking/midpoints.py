"""Quantized models whose numbers lie in the middle of two codes, of which either is right.

What comes before a number is rounded to a code may be added up in another order, and ONNX Runtime's
own quantized ops add the zero point before they round. Then one code in some 10,000 is another, and
a whole row of answers with it, by much more than sums in another order are apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.ir import onnx_io
from graphopt.ir.atomic import scratch_folder
from graphopt.ir.graph import Graph, Node, Value

Arrays = Mapping[str, np.ndarray]

NUDGE = 2.0**-13
"""Of the distance of two codes: float32 is off by 2^-22 of a number 256 codes from zero, sums of
some numbers by a few times that."""


def slack(
    graph: Graph, source: Sequence[Arrays], feeds: Sequence[Arrays], run: Callable[..., Any]
) -> list[dict[str, np.ndarray]] | None:
    """How far answers may be apart for that reason: what broadcasts to each output.

    It is twice what the answers of a row (of the first axis) change by at most when all numbers
    that are rounded are a little larger, or smaller. None if nothing is rounded.

    Args:
        source: the answers of the model itself.
        run: opens a model file, and answers feeds.
    """
    moved = [[dict[str, np.ndarray]() for _ in feeds] for _ in (1, -1)]
    with scratch_folder() as folder:
        for answers, sign in zip(moved, (1, -1)):
            nudged, path = graph.clone(), Path(folder) / f"{sign}.onnx"
            if not _nudge(nudged, sign * NUDGE):
                return None
            onnx_io.save(nudged, path)
            model = run(path)
            for answer, feed in zip(answers, feeds):
                answer.update(model(feed))
    return [
        {name: 2 * np.maximum(*(_change(part[name], own[name]) for part in parts)) for name in own}
        for own, *parts in zip(source, *moved)
    ]


def _change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest difference in each row, of the shape [n, 1, …]."""
    if a.shape != b.shape or a.dtype.kind not in "fiu" or not a.size:
        return np.zeros(())
    with np.errstate(invalid="ignore"):
        off = np.nan_to_num(np.abs(a.astype(np.float64) - b), posinf=0)
    return off.max(axis=tuple(range(1, a.ndim)), keepdims=True)  # type: ignore[no-any-return]


def _nudge(graph: Graph, codes: float) -> bool:
    """Add so much of the distance of two codes to all that is rounded; True if anything is."""
    found = False
    for node in list(graph.walk()):
        x, step = node.input(0), _distance(node)
        if x is None or step is None or node.graph is None:
            continue
        offset = node.graph.insert("Mul", [step, _number(node, codes)], before=node).output
        moved = node.graph.insert("Add", [x, offset], before=node).output
        node.graph.set_input(node, 0, moved)
        found = True
    return found


def _distance(node: Node) -> Value | None:
    """The distance of the codes that a node rounds float32 to, a scalar."""
    x, scale = node.input(0), node.input(1)
    if node.graph is None or x is None or x.dtype != "float32":
        return None
    if node.op == "QuantizeLinear" and scale is not None and scale.rank == 0:
        return scale
    if node.op != "DynamicQuantizeLinear":
        return None
    ends = [node.graph.insert(op, [x], {"keepdims": 0}, before=node) for op in _ENDS]
    reach = node.graph.insert("Sub", [end.output for end in ends], before=node).output
    return node.graph.insert("Mul", [reach, _number(node, 1 / 255)], before=node).output


_ENDS = ("ReduceMax", "ReduceMin")


def _number(node: Node, number: float) -> Value:
    assert node.graph is not None
    return node.graph.constant(np.array(number, np.float32))
