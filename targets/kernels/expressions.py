"""Values of the expressions of a TVMScript function, at a cost that a compiler can pay.

TVM makes a Python syntax tree of every operand, compiles it and runs that: half of the time that a
model takes to compile. Here the operands are looked up and the operators called, and only what no
kernel of a real model has (slices, comprehensions) is left to TVM.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm.script.parser._core import doc
from tvm.script.parser.core.error import ParserError
from tvm.script.parser.core.evaluator import ExprEvaluator, _eval_op

if TYPE_CHECKING:
    from tvm.script.parser._core import Parser


def value(parser: Parser, node: doc.AST) -> Any:
    """What an expression is where `parser` stands: a Python object, an expression of TVM, a frame.

    Raises:
        ParserError: it has a name that is not there.
    """
    find = _VALUES.get(type(node))
    if find is not None:
        return find(parser, node)
    return ExprEvaluator.eval(parser, parser.var_table.get(), node)


def _name(parser: Parser, node: doc.Name) -> Any:
    values = parser.var_table.name2value.get(node.id)
    if values:
        return values[-1]
    if not hasattr(builtins, node.id):
        raise ParserError(node, f"Undefined variable: {node.id}")
    return getattr(builtins, node.id)


def _call(parser: Parser, node: doc.Call) -> Any:
    function = value(parser, node.func)
    named: dict[str, Any] = {}
    for keyword in node.keywords:
        found = value(parser, keyword.value)
        named |= {keyword.arg: found} if keyword.arg else found
    return function(*_several(parser, node.args), **named)


def _several(parser: Parser, nodes: list[doc.expr]) -> list[Any]:
    found: list[Any] = []
    for node in nodes:
        if isinstance(node, doc.Starred):
            found += value(parser, node.value)
        else:
            found.append(value(parser, node))
    return found


def _subscript(parser: Parser, node: doc.Subscript) -> Any:
    parts = node.slice.elts if isinstance(node.slice, doc.Tuple) else [node.slice]
    if any(isinstance(part, doc.Slice) for part in parts):
        return ExprEvaluator.eval(parser, parser.var_table.get(), node)
    return value(parser, node.value)[value(parser, node.slice)]


def _compare(parser: Parser, node: doc.Compare) -> Any:
    operands = [value(parser, operand) for operand in (node.left, *node.comparators)]
    found = [_eval_op(op, [*pair]) for op, *pair in zip(node.ops, operands, operands[1:])]
    result = found[0]
    for other in found[1:]:
        result = _eval_op(doc.And(), [result, other])
    return result


def _bool_op(parser: Parser, node: doc.BoolOp) -> Any:
    """A Python bool decides at once; what TVM cannot know yet becomes an expression."""
    decides = isinstance(node.op, doc.Or)
    found = value(parser, node.values[0])
    for operand in node.values[1:]:
        if found is decides:
            return found
        found = _eval_op(node.op, [found, value(parser, operand)])
    return found


def _if_exp(parser: Parser, node: doc.IfExp) -> Any:
    test = value(parser, node.test)
    if not isinstance(test, bool):
        return ExprEvaluator.eval(parser, parser.var_table.get(), node)
    return value(parser, node.body if test else node.orelse)


def _dict(parser: Parser, node: doc.Dict) -> Any:
    return {value(parser, k): value(parser, v) for k, v in zip(node.keys, node.values)}


_VALUES: dict[type, Callable[[Parser, Any], Any]] = {
    doc.Name: _name,
    doc.Constant: lambda parser, node: node.value,
    doc.Attribute: lambda parser, node: getattr(value(parser, node.value), node.attr),
    doc.Call: _call,
    doc.Subscript: _subscript,
    doc.Tuple: lambda parser, node: tuple(_several(parser, node.elts)),
    doc.List: lambda parser, node: _several(parser, node.elts),
    doc.Dict: _dict,
    doc.UnaryOp: lambda parser, node: _eval_op(node.op, [value(parser, node.operand)]),
    doc.BinOp: lambda parser, node: _eval_op(
        node.op, [value(parser, node.left), value(parser, node.right)]
    ),
    doc.Compare: _compare,
    doc.BoolOp: _bool_op,
    doc.IfExp: _if_exp,
}
