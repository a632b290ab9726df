"""What the names of sizes say, and where that is believed.

In ONNX equal names are equal sizes, and exporters write sums and products of names (`4*batch`). But
some call different sizes alike. So a name is believed only where an op's result is unknown without
it, and only if the rest of the model then fits. What is believed is checked at every call.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping

from graphopt.ir import aligned_axes, dims
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, Node
from graphopt.ir.types import TensorType, Type

_OPERAND = r" *(?:[a-zA-Z_]\w*|\d+) *"
_SUM = re.compile(rf"{_OPERAND}(?:(?:[+*]|(?<= )-(?= )){_OPERAND})*", re.ASCII)
_LONGEST = 64  # characters of a name that is read
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
_MOST = 1 << 31  # numbers in names beyond it are no sizes


def own_sizes(type_: Type, owner: str, declared: dict[str, str]) -> Type:
    """The type of input `owner` with sizes that no other input has, until something says so.

    Exporters give one name to sizes that differ at run time (the number of bags and the number of
    ids in them, say), and runtimes do not mind. `declared` says which input a name was first seen
    at, and is extended.
    """

    def own(size: str) -> Dim | None:
        free = declared.setdefault(size, owner) == owner and _read_sum(size) is None
        return None if free else Sym.named(f"{size}@{owner}")

    if not isinstance(type_, TensorType) or type_.shape is None:
        return type_
    return TensorType(type_.dtype, tuple(dims.substitute(dim, own) for dim in type_.shape))


def said(graph: Graph) -> dict[str, Dim]:
    """What the names of the inputs' sizes say of them, for those that say something.

    `n@x`, the size that input `x` calls `n`, is said to be what others call so; `2*n + 1` is what
    it says if `n` is the size of some axis.
    """
    labels = {
        name: name.removesuffix(f"@{value.name}")
        for value in graph.inputs
        for dim in value.shape or ()
        for name in sorted(dims.symbols(dim))
    }
    first = {label: name for name, label in reversed(labels.items())}
    shapes = [value.shape or () for value in graph.inputs]
    plain = {dim.text for shape in shapes for dim in shape if dims.is_name(dim)}
    found = {}
    for name, label in labels.items():
        size = _read_sum(label)
        if size is None or not dims.symbols(size) <= plain:
            size = Sym.named(first[label])
        if size != Sym.named(name):
            found[name] = size
    return found


def _read_sum(text: str) -> Dim | None:
    """What `text` says if that is more than a name."""
    size = read(text)
    return None if size is None or dims.symbols(size) == {text} else size


def read(text: str) -> Dim | None:
    """The sum of products of names and numbers that `text` is, None if it is no such thing."""
    if len(text) > _LONGEST or not _SUM.fullmatch(text):
        return None
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def _value(node: ast.expr) -> Dim:
    if isinstance(node, ast.Name):
        return Sym.named(node.id)
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value < _MOST:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(ast.dump(node))


def questions(graph: Graph, claims: Mapping[str, Dim]) -> Iterator[dict[str, Dim]]:
    """Claims without which the result of some op is unknown, and with which it is known."""
    for node in graph.walk():
        for a, b, known in _compared(node):
            named = dims.symbols(a) | dims.symbols(b)
            used = {name: claims[name] for name in sorted(named) if name in claims}
            if used and not known(a, b) and known(*(dims.substitute(d, used.get) for d in (a, b))):
                yield used


_Known = Callable[[Dim, Dim], bool]


def _compared(node: Node) -> Iterator[tuple[Dim, Dim, _Known]]:
    """Pairs of sizes that decide whether a result of `node` is known, and what they have to be."""
    for column in aligned_axes.columns(node):
        yield from ((column[0], other, operator.eq) for other in column[1:] if other != 1)
    if node.op not in ("Reshape", "Expand") or node.inputs[1] is None:
        return
    data, content = node.inputs[0], node.inputs[1].content
    wanted = [] if content is None else list(content.reshape(-1))
    if data is None or not data.shape or not wanted or 0 in wanted:
        return
    if node.op == "Expand":
        yield from (
            (a, b, operator.eq) for a, b in zip(data.shape[::-1], wanted[::-1]) if 1 not in (a, b)
        )
        return
    rest = dims.product(size for size in wanted if size != -1)
    yield dims.product(data.shape), rest, _leaves_some if -1 in wanted else operator.eq


def _leaves_some(elements: Dim, others: Dim) -> bool:
    """Whether a remaining size is known and is not 1.

    A reshape that would only add an axis of 1 was written for sizes that differ: ids and bags.
    """
    return dims.exact_div(elements, others) not in (None, 1)
