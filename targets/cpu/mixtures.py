"""Weighted sums of experts, as in MMoE and PLE, by a kernel that reads their rows where these are.

    y[n] = sum over e of share[n, e] * expert_e[n],  share = Softmax(logits)

(Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts",
2018.) Experts are not joined, and the shares are not stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graphopt.analysis.cost import Cost, cost_rule
from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.id_arithmetic import columns_of
from graphopt.targets.cpu.kernels.panels import Columns

# A Mixture has matrices for inputs. `parts` says, for the shares and then for each expert, which of
# them and which columns; with `softmax` the shares are what Softmax makes of theirs.
OP_TYPE = "Mixture"
MOST = 32
"""Experts; the code is written out for each."""
LEAST = 4
"""Elements of an expert's row, for which vectors pay."""
_VIEWS = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze"])

Part = tuple[Value, Columns]
x, y, axes = var("x"), var("y"), const("axes")


@type_rule(OP_TYPE, domain=DOMAIN)
def _mixture_type(node: Node) -> list[Type | None]:
    return [tensor_type("float32", node.attrs["dims"])]


@cost_rule(OP_TYPE, domain=DOMAIN)
def _mixture_cost(node: Node) -> Cost:
    """What is read of wider matrices are only the columns."""
    (_, gate), *experts = node.attrs["parts"]
    width, rows = sum(columns.width for _, columns in experts), node.attrs["rows"]
    shares = 5 * gate.width if node.attrs["softmax"] else 0
    written = 4 * product(node.output.tensor.dims)
    return Cost((2 * width + shares) * rows, 4 * (width + gate.width) * rows, written)


# --------------------------------------------------------------------- matching


@dataclass
class _Sum:
    """A sum over `axis` of rows times shares.

    Attributes:
        rows: samples.
        width: elements of the row of an expert.
        apart: each expert's rows lie together, not those of each sample.
        nodes: the ops that it stands for.
    """

    rows: Dim
    count: int
    width: int
    apart: bool
    nodes: list[Node] = field(default_factory=list)

    def experts(self, value: Value) -> list[Part]:
        """What the rows of all experts lie beside each other in; a part may be those of several."""
        return self._parts(value, self.count * self.width)

    def _parts(self, value: Value, width: int) -> list[Part]:
        """The columns that `value` is made of, as it is [rows, width] or, apart, [.., rows, d]."""
        value = self._bare(value)
        node = value.producer
        operands = [] if node is None else self._joined(node)
        if not operands:
            return [self._columns(value, width)]
        assert node is not None
        self.nodes.append(node)
        return [part for operand, wide in operands for part in self._parts(operand, wide)]

    def _bare(self, value: Value) -> Value:
        """What `value` is another shape of."""
        while (node := value.producer) is not None and node.op in _VIEWS:
            source = node.inputs[0]
            if source is None or source.shape is None:
                break
            self.nodes.append(node)
            value = source
        return value

    def _joined(self, node: Node) -> list[tuple[Value, int]]:
        """The operands of a Concat along the columns, with their widths; none of anything else."""
        operands = node.operands
        if node.op != "Concat" or any(operand.shape is None for operand in operands):
            return []
        outer = 1 if self.apart else self.rows
        axis = node.attr("axis") % (node.output.rank or 1)
        if any(product(operand.tensor.dims[:axis]) != outer for operand in operands):
            return []
        found = []
        for operand in operands:
            size = product(operand.tensor.dims[axis:])
            if self.apart and size == product([self.rows, self.width]):
                size = self.width
            elif self.apart or not isinstance(size, int):
                return []
            found.append((operand, size))
        return found

    def _columns(self, value: Value, width: int) -> Part:
        taken = columns_of(value) if value.rank == 2 else None
        if taken is not None and taken[0].tensor.dims[0] == self.rows == value.tensor.dims[0]:
            assert value.producer is not None
            self.nodes.append(value.producer)
            return taken[0], Columns(taken[1], width, taken[0].tensor.dims[1])  # type: ignore[arg-type]
        return value, Columns(0, width, width)

    def gate(self, shares: Value) -> tuple[Part, bool] | None:
        """Where the shares are, or, if True, what Softmax makes them of for this sum alone."""
        before = len(self.nodes)
        value = self._bare(shares)
        if self.apart:
            turned = value.producer
            source = None if turned is None or turned.op != "Transpose" else turned.inputs[0]
            if turned is None or source is None or source.shape != (self.rows, self.count):
                return None
            if turned.attr("perm") not in (None, [1, 0]):
                return None
            self.nodes.append(turned)
            value = self._bare(source)
        node = value.producer
        if node is None or node.op != "Softmax" or not self._is_along(node):
            return self._columns(value, self.count), False
        if any(len(n.output.uses) > 1 for n in (node, *self.nodes[before:])):
            return self._columns(value, self.count), False
        self.nodes.append(node)
        assert node.inputs[0] is not None
        return self._columns(self._bare(node.inputs[0]), self.count), True

    def _is_along(self, softmax: Node) -> bool:
        """True if it makes the shares of each sample add up to 1."""
        dims = softmax.output.tensor.dims
        axis = softmax.attr("axis") % len(dims)
        inner = product(dims[axis + 1 :])
        return (product(dims[:axis]), dims[axis], inner) == (self.rows, self.count, 1)


def _sum_of(mixed: Value, shares: Value, axis: int) -> _Sum | None:
    """What the sum of mixed * shares over `axis` is, if the shares are one number for each row."""
    if mixed.shape is None or shares.shape is None:
        return None
    dims, own = mixed.tensor.dims, shares.tensor.dims
    inner = next((k for k in range(len(own)) if all(dim == 1 for dim in own[k:])), len(own))
    if len(own) != len(dims) or own[:inner] != dims[:inner] or inner <= axis:
        return None
    rows, width = product([*dims[:axis], *dims[axis + 1 : inner]]), product(dims[inner:])
    apart = inner > axis + 1
    if apart and product(dims[:axis]) != 1:
        return None
    count = dims[axis]
    known = isinstance(count, int) and isinstance(width, int)
    return _Sum(rows, count, width, apart) if known else None  # type: ignore[arg-type]


@rule(op.ReduceSum(op.Mul(x, y), axes))
def sum_to_mixture(
    rw: Rewriter, node: Node, x: Value, y: Value, axes: Value
) -> Value | NoMatch | None:
    """ReduceSum(Mul(Concat(experts), Softmax(g)), axis) -> Mixture(g, experts)"""
    assert axes.const is not None
    if x.rank is None or x.rank != y.rank or axes.const.size != 1:
        return None
    axis = axes.const.item() % x.rank
    for mixed, shares in ((x, y), (y, x)):
        found = _sum_of(mixed, shares, axis)
        if found is not None:
            return _emit(rw, node, found, mixed, shares)
    return NoMatch("neither operand is one number for each row of the other")


@rule(op.MatMul(x, y))
def product_to_mixture(rw: Rewriter, node: Node, x: Value, y: Value) -> Value | NoMatch | None:
    """MatMul(Softmax(g)[…, 1, e], Concat(experts)[…, e, d]) -> Mixture(g, experts)"""
    rank = x.rank or 0
    if rank < 3 or rank != y.rank or x.tensor.dims[-2] != 1:
        return None
    *batch, count, width = y.tensor.dims
    if list(x.tensor.dims[:-2]) != batch or x.tensor.dims[-1] != count:
        return NoMatch("its operands are not as many matrices")
    if not isinstance(count, int) or not isinstance(width, int):
        return NoMatch("how many rows it adds up, or how long, is known only at run time")
    return _emit(rw, node, _Sum(product(batch), count, width, apart=False), y, x)


def _emit(rw: Rewriter, node: Node, found: _Sum, mixed: Value, shares: Value) -> Value | NoMatch:
    if mixed.dtype != "float32" or mixed.const is not None or shares.const is not None:
        return NoMatch("not float32, or one of its operands is constant")
    if not 1 < found.count <= MOST or found.width < LEAST:
        return NoMatch(f"not 2 to {MOST} rows, or they have fewer than {LEAST} elements")
    parts, gate = found.experts(mixed), found.gate(shares)
    if gate is None:
        return NoMatch("the shares of a sample do not lie beside each other")
    experts = [row for part in parts for row in _rows(part, found.width)]
    if (found.apart and len(parts) < found.count) or len(experts) != found.count:
        return NoMatch("an expert's row is made of several")
    logits, softmax = gate
    if not softmax and len(parts) == 1:
        return NoMatch("nothing is joined for it, nor normalized")
    inputs = list(dict.fromkeys(matrix for matrix, _ in [logits, *experts]))
    attrs = {
        "parts": tuple((inputs.index(matrix), part) for matrix, part in [logits, *experts]),
        "softmax": softmax,
        "rows": found.rows,
        "dims": node.output.tensor.dims,
    }
    nodes = [node, *found.nodes]
    origin = dict.fromkeys((*rw.origin, *(name for n in nodes for name in n.origin)))
    return rw.insert(OP_TYPE, inputs, attrs, domain=DOMAIN, origin=tuple(origin)).output


def _rows(part: Part, width: int) -> list[Part]:
    """The rows of `width` elements in a part; none if they are not whole."""
    matrix, columns = part
    if columns.width % width:
        return []
    starts = range(columns.start, columns.start + columns.width, width)
    return [(matrix, Columns(start, width, columns.source)) for start in starts]


RULES = (sum_to_mixture, product_to_mixture)
