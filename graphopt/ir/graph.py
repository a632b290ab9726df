"""Graphs of nodes and values.

A *value* is an edge: produced once, used at known places. A *node* is one op. A graph keeps its
nodes in topological order and is the only place that changes edges, so that uses are always exact.
Identity is equality: names are labels for people, except those of graph inputs and outputs, which
belong to the user. A node in a subgraph may use values of the enclosing graphs directly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from graphopt.ir import schema
from graphopt.ir.types import FreshDim, TensorType, Type, dtype_of

# int, float, str, a list of these, an array, or a Graph.
Attr = Any


class Use(NamedTuple):
    """One place that reads a value: input `slot` of a node, or output `slot` of a graph."""

    user: Node | Graph
    slot: int


class Value:
    """An edge of the graph.

    Attributes:
        name: a label.
        type: dtype and shape as inferred.
        producer: the node that computes it; None for graph inputs and constants.
        const: the array of a constant (read-only, possibly memory-mapped), else None.
        content: for small integer and bool tensors, an object array of `Dim`s that says what the
            elements are in terms of the graph's symbolic sizes; None where that is not known.
    """

    __slots__ = ("_uses", "const", "content", "name", "producer", "type")

    def __init__(self, name: str, type: Type, producer: Node | None = None) -> None:
        self.name, self.type, self.producer = name, type, producer
        self.const: np.ndarray | None = None
        self.content: np.ndarray | None = None
        self._uses: dict[Use, None] = {}

    @property
    def uses(self) -> tuple[Use, ...]:
        return tuple(self._uses)

    @property
    def users(self) -> tuple[Node, ...]:
        """The nodes that read the value, each once, in order of first use."""
        return tuple(dict.fromkeys(u.user for u in self._uses if isinstance(u.user, Node)))

    @property
    def is_graph_output(self) -> bool:
        return any(isinstance(use.user, Graph) for use in self._uses)

    @property
    def tensor(self) -> TensorType:
        """The type, for callers that know it is a tensor's."""
        assert isinstance(self.type, TensorType), f"{self.name} is not a tensor"
        return self.type

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[Any, ...] | None:
        """None where it is not known, and for what is no tensor."""
        return self.type.shape if isinstance(self.type, TensorType) else None

    @property
    def rank(self) -> int | None:
        """None where it is not known, and for what is no tensor."""
        return self.type.rank if isinstance(self.type, TensorType) else None

    def __repr__(self) -> str:
        return f"<Value {self.name!r}: {self.type}>"


class Node:
    """One op: `op_type` of `domain`, applied to inputs, with attributes.

    Omitted optional inputs are None; omitted trailing ones are absent. `origin` holds the names of
    the source nodes that this one stands for, so that reports and errors speak of the user's model.
    """

    __slots__ = (
        "_next",
        "_prev",
        "attrs",
        "domain",
        "graph",
        "inputs",
        "op_type",
        "origin",
        "outputs",
    )

    def __init__(self, op_type: str, domain: str, attrs: dict[str, Attr], origin: tuple[str, ...]):
        self.op_type, self.domain, self.attrs, self.origin = op_type, domain, attrs, origin
        self.inputs: tuple[Value | None, ...] = ()
        self.outputs: tuple[Value, ...] = ()
        self.graph: Graph | None = None
        self._prev: Node | None = None
        self._next: Node | None = None

    @property
    def op(self) -> str:
        """`Gemm`, or `domain::Op` for ops outside the standard domain."""
        return f"{self.domain}::{self.op_type}" if self.domain else self.op_type

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    @property
    def operands(self) -> list[Value]:
        """The inputs that are not omitted."""
        return [value for value in self.inputs if value is not None]

    def input(self, index: int) -> Value | None:
        """Input `index`, None where it was omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def const(self, index: int) -> np.ndarray | None:
        """The array of input `index` if it is a constant."""
        value = self.input(index)
        return value.const if value is not None else None

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute, else the schema's default, else `default`."""
        if name in self.attrs:
            return self.attrs[name]
        assert self.graph is not None
        found = schema.attr_default(self.op_type, self.domain, self.graph.opset(self.domain), name)
        return default if found is None else found

    @property
    def subgraphs(self) -> tuple[Graph, ...]:
        if not self.attrs:
            return ()
        return tuple(attr for attr in self.attrs.values() if isinstance(attr, Graph))

    @property
    def where(self) -> tuple[str, ...]:
        """What to call this node in front of the user."""
        return self.origin or tuple(value.name for value in self.outputs[:1])

    def __repr__(self) -> str:
        return f"<Node {self.op} {self.where}>"


class Graph:
    """A topologically ordered list of nodes with inputs and outputs.

    `owner` is the node that holds this graph as an attribute, None for the model's main graph,
    whose `opsets` and fresh sizes all of its subgraphs share.
    """

    def __init__(
        self, name: str = "graph", opsets: dict[str, int] | None = None, parent: Graph | None = None
    ) -> None:
        self.name = name
        self.owner: Node | None = None
        self.parent = parent
        self.opsets: dict[str, int] = parent.opsets if parent is not None else opsets or {}
        self.fresh_dim: FreshDim = parent.fresh_dim if parent is not None else FreshDim()
        self._names: Iterator[int] = parent._names if parent is not None else itertools.count()
        self.metadata: dict[str, str] = {}
        self.inputs: list[Value] = []
        self.output_names: list[str] = []
        self._outputs: list[Value] = []
        self._first: Node | None = None
        self._last: Node | None = None

    # ------------------------------------------------------------------ reading

    def opset(self, domain: str = "") -> int:
        """The version of `domain` that the nodes are written in."""
        return self.opsets.get(domain, 1)

    @property
    def outputs(self) -> tuple[Value, ...]:
        return tuple(self._outputs)

    @property
    def nodes(self) -> Iterator[Node]:
        """The nodes in order. Nodes may be inserted and erased while iterating."""
        node = self._first
        while node is not None:
            following = node._next
            yield node
            # The successor may have been erased meanwhile: then go on from what follows it now.
            if node.graph is self:
                node = node._next
            else:
                while following is not None and following.graph is not self:
                    following = following._next
                node = following

    def __len__(self) -> int:
        return sum(1 for _ in self.nodes)

    def walk(self) -> Iterator[Node]:
        """All nodes, those of subgraphs right after the node that holds them."""
        for node in self.nodes:
            yield node
            for subgraph in node.subgraphs:
                yield from subgraph.walk()

    def constants(self) -> list[Value]:
        """The constants in use, subgraphs included, each once, in order of first use."""
        found: dict[Value, None] = {}
        for node in self.walk():
            found.update((v, None) for v in node.inputs if v is not None and v.const is not None)
            for subgraph in node.subgraphs:
                found.update((v, None) for v in subgraph.outputs if v.const is not None)
        found.update((v, None) for v in self._outputs if v.const is not None)
        return list(found)

    # ----------------------------------------------------------------- building

    def fresh_name(self, stem: str) -> str:
        """A label that no value made by this graph carries."""
        return f"{stem}.{next(self._names)}"

    def add_input(self, name: str, type: Type) -> Value:
        """Append a graph input."""
        from graphopt.ir.dims import symbols

        value = Value(name, type)
        if isinstance(type, TensorType):
            for dim in type.shape or ():
                self.fresh_dim.taken |= symbols(dim)
        self.inputs.append(value)
        return value

    def constant(self, array: np.ndarray, name: str = "") -> Value:
        """A value that holds `array` (not copied)."""
        from graphopt.ir.content import content_of

        value = Value(name or self.fresh_name("const"), TensorType(dtype_of(array), array.shape))
        value.const = array
        value.content = content_of(array)
        return value

    def insert(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        attrs: dict[str, Attr] | None = None,
        *,
        domain: str = "",
        outputs: int | Sequence[str] = 1,
        before: Node | None = None,
        origin: Iterable[str] = (),
    ) -> Node:
        """Make a node, infer its types, and put it before `before` (at the end if None).

        Args:
            inputs: the values read; None for an omitted optional input.
            outputs: how many outputs, or their names.

        Raises:
            InvalidModelError: the op does not exist or its inputs do not fit it.
        """
        from graphopt.ir.infer import infer_node

        node = Node(op_type, domain, dict(attrs or {}), tuple(dict.fromkeys(origin)))
        for subgraph in node.subgraphs:
            subgraph.owner = node
        if isinstance(outputs, int):
            outputs = [self.fresh_name(op_type) for _ in range(outputs)]
        node.graph = self
        node.inputs = tuple(inputs)
        node.outputs = tuple(Value(name, TensorType(""), node) for name in outputs)
        infer_node(node)
        self._attach(node, before)
        return node

    def _attach(self, node: Node, before: Node | None) -> None:
        self._link(node, before)
        for index, value in enumerate(node.inputs):
            if value is not None:
                value._uses[Use(node, index)] = None

    def _link(self, node: Node, before: Node | None) -> None:
        previous = before._prev if before is not None else self._last
        node._prev, node._next = previous, before
        if previous is None:
            self._first = node
        else:
            previous._next = node
        if before is None:
            self._last = node
        else:
            before._prev = node

    def _unlink(self, node: Node) -> None:
        if node._prev is None:
            self._first = node._next
        else:
            node._prev._next = node._next
        if node._next is None:
            self._last = node._prev
        else:
            node._next._prev = node._prev

    # ----------------------------------------------------------------- changing

    def set_outputs(self, values: Sequence[Value], names: Sequence[str] | None = None) -> None:
        """Replace the graph's outputs; without `names` their names stay."""
        for index, value in enumerate(self._outputs):
            del value._uses[Use(self, index)]
        self._outputs = list(values)
        for index, value in enumerate(self._outputs):
            value._uses[Use(self, index)] = None
        if names is not None:
            self.output_names = list(names)
        assert len(self.output_names) == len(self._outputs)

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Make input `index` of `node` read `value`, and bring types up to date."""
        self._rewire(Use(node, index), value)
        self._propagate([node])

    def set_attr(self, node: Node, name: str, attr: Attr) -> None:
        """Set an attribute (None removes it), and bring types up to date."""
        if attr is None:
            node.attrs.pop(name, None)
        else:
            node.attrs[name] = attr
        self._propagate([node])

    def replace_uses(self, old: Value, new: Value) -> None:
        """Make everything that reads `old` read `new`. `old` stays, unused.

        A graph output keeps its name: that belongs to the graph, not to the value.
        """
        if old is new:
            return
        users = old.users
        for use in old.uses:
            self._rewire(use, new)
        if old.type != new.type or new.content is not None:
            self._propagate(users)

    def _rewire(self, use: Use, new: Value | None) -> None:
        user, index = use
        if isinstance(user, Graph):
            assert new is not None
            old: Value | None = user._outputs[index]
            user._outputs[index] = new
        else:
            old = user.inputs[index]
            user.inputs = (*user.inputs[:index], new, *user.inputs[index + 1 :])
        if old is not None:
            del old._uses[use]
        if new is not None:
            new._uses[use] = None

    def _propagate(self, nodes: Iterable[Node]) -> None:
        """Infer again the types of `nodes` and of what follows from them, until nothing changes."""
        from graphopt.ir.infer import infer_node

        pending = dict.fromkeys(nodes)
        while pending:
            node = next(iter(pending))
            del pending[node]
            if infer_node(node):
                for value in node.outputs:
                    pending.update(dict.fromkeys(value.users))
                    for use in value.uses:
                        if isinstance(use.user, Graph) and use.user.owner is not None:
                            pending[use.user.owner] = None

    def erase(self, node: Node) -> None:
        """Remove a node whose outputs nobody reads, and its subgraphs with it."""
        assert node.graph is self, "the node is not in this graph"
        assert not any(value._uses for value in node.outputs), f"{node} is still in use"
        for subgraph in node.subgraphs:
            subgraph.clear()
        for index, value in enumerate(node.inputs):
            if value is not None:
                del value._uses[Use(node, index)]
        self._unlink(node)
        node.graph = None

    def clear(self) -> None:
        """Remove everything, so that no value of an enclosing graph is used from here."""
        self.set_outputs([], [])
        for node in reversed(list(self.nodes)):
            self.erase(node)

    def move(self, node: Node, before: Node | None) -> None:
        """Move a node of this graph to just before `before` (to the end if None)."""
        assert node.graph is self
        if node is before or node._next is before:
            return
        self._unlink(node)
        self._link(node, before)

    # ------------------------------------------------------------------ copying

    def clone(self, values: dict[Value, Value] | None = None) -> Graph:
        """A deep copy; constant arrays are shared. `values` gets the copy of every value."""
        from graphopt.ir.copying import copy_into

        copy = Graph(self.name, dict(self.opsets))
        copy.fresh_dim.taken = set(self.fresh_dim.taken)
        copy.fresh_dim.count = self.fresh_dim.count
        copy._names = itertools.count(next(self._names))
        copy.metadata = dict(self.metadata)
        copy_into(self, copy, {} if values is None else values, same_types=True)
        return copy
