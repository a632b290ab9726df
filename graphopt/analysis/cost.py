"""What a graph costs to run: arithmetic, and bytes of tensors read and written, node by node.

An operation is one add, multiply, comparison or elementary function on one element, of any dtype;
a multiply-add is two. Copies, casts and lookups are none. Bytes are those that a kernel must touch
when every node is run on its own: a lookup reads the rows it takes, not its table; a reshape
touches nothing. Costs are polynomials in the graph's symbolic sizes until numbers are put in.

Operations that a CPU's instruction for fewer bits does have a factor of that instruction's name: 1
where they are counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphopt.ir import dims
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType

INSTRUCTIONS = ("dpbf16ps", "tdpbf16ps", "bfdot", "vpdpbusd", "vpmaddwd", "tdpbusd")
"""Those that have a factor of their own, as LLVM calls them."""


def factor(instruction: str) -> str:
    """The name of the factor of operations that an instruction does."""
    return f"operation of {instruction}"


@dataclass(frozen=True)
class Cost:
    """Operations, and bytes read and written; symbolic where the sizes are."""

    flops: Dim = 0
    read: Dim = 0
    written: Dim = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.read + other.read, self.written + other.written)

    def times(self, count: Dim) -> Cost:
        """The cost of doing it `count` times."""
        return Cost(self.flops * count, self.read * count, self.written * count)

    def at(self, sizes: Mapping[str, int]) -> Cost | None:
        """The cost for given sizes; None if it depends on a size that is not among them."""
        numbers = [dims.substitute(d, sizes.get) for d in (self.flops, self.read, self.written)]
        return Cost(*numbers) if all(isinstance(n, int) for n in numbers) else None


def done_by(instruction: str | None, operations: Dim) -> Dim:
    """So many operations, done by one of INSTRUCTIONS or, if it is None, those of float32."""
    assert instruction is None or instruction in INSTRUCTIONS, instruction
    return operations if instruction is None else operations * Sym.named(factor(instruction))


CostRule = Callable[[Node], Cost]
_RULES: dict[tuple[str, str], CostRule] = {}


class UnknownCost(Exception):
    """A rank or a trip count is known only at run time, or no rule covers the op."""


def cost_rule(*ops: str, domain: str = "") -> Callable[[CostRule], CostRule]:
    """Register the cost rule of ops."""

    def register(rule: CostRule) -> CostRule:
        for op in ops:
            assert (domain, op) not in _RULES, f"two cost rules for {domain}::{op}"
            _RULES[(domain, op)] = rule
        return rule

    return register


def rule_of(op_type: str, domain: str = "") -> CostRule | None:
    """The cost rule of an op, if it has one."""
    from graphopt.analysis import op_costs  # noqa: F401  (importing registers the rules)

    return _RULES.get((domain, op_type))


def node_cost(node: Node) -> Cost:
    """The cost of one run of `node`, its subgraphs included.

    Raises:
        UnknownCost: it cannot be told from the graph alone.
    """
    rule = rule_of(node.op_type, node.domain)
    if rule is None:
        raise UnknownCost(f"no cost rule for {node.op}")
    return rule(node)


def fused_cost(nodes: Sequence[Node]) -> Cost:
    """The cost of nodes that are computed together: what passes between them touches no memory.

    Raises:
        UnknownCost: that of one of them cannot be told from the graph alone.
    """
    total = sum((node_cost(node) for node in nodes), Cost())
    inside = {v for n in nodes for v in n.outputs if all(use.user in nodes for use in v.uses)}
    read = nbytes(*(v for node in nodes for v in node.inputs if v in inside))
    return Cost(total.flops, total.read - read, total.written - nbytes(*inside))


def costs(graph: Graph, sizes: Mapping[str, int]) -> Iterator[tuple[Node, Cost | None]]:
    """Every node of `graph` with its cost in numbers, None where that is known only at run time.

    A node that holds subgraphs answers for them.
    """
    for node in graph.nodes:
        try:
            yield node, node_cost(node).at(sizes)
        except UnknownCost:
            yield node, None


def is_parameter(value: Value) -> bool:
    """True for constants that hold learnt numbers: floats, and the narrow integers of quantization.

    A scalar is taken for a part of the formula, such as an exponent.
    """
    wide = ("int64", "int32", "uint64", "uint32", "bool", "string")
    return value.const is not None and value.const.ndim > 0 and value.dtype not in wide


def parameters(values: Iterable[Value]) -> int:
    """How many learnt numbers `values` hold; an array that several of them share counts once."""
    arrays = {id(v.const): v.const.size for v in values if v.const is not None and is_parameter(v)}
    return sum(arrays.values())


def dtype_bits(dtype: str) -> int:
    """Bits of one element in memory (strings count as a pointer)."""
    found = re.search(r"\d+", dtype)
    return int(found.group()) if found else {"bool": 8}.get(dtype, 64)


def elements(value: Value | None) -> Dim:
    """How many a tensor has; an input that is left out has none. UnknownCost where it varies."""
    if value is None:
        return 0
    found = value.type.elements if isinstance(value.type, TensorType) else None
    if found is None:
        raise UnknownCost(f"the rank of {value.name!r} is not known")
    return found


def nbytes(*values: Value | None) -> Dim:
    """How many bytes tensors have together."""
    total: Dim = 0
    for value in values:
        if value is not None:
            total = total + dims.ceildiv(elements(value) * dtype_bits(value.dtype), 8)
    return total


def dims_of(node: Node, index: int) -> tuple[Dim, ...]:
    """The shape of an input; UnknownCost where its rank varies."""
    value = node.input(index)
    if value is None or not isinstance(value.type, TensorType) or value.type.shape is None:
        raise UnknownCost(f"{node.op}: the rank of input {index} is not known")
    return value.type.shape


def streaming(node: Node, flops: Dim) -> Cost:
    """The cost of an op that reads all of its inputs and writes all of its outputs once."""
    return Cost(flops, nbytes(*node.inputs), nbytes(*node.outputs))
