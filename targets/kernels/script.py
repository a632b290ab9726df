"""`T.prim_func` and `T.inline` at a cost that a compiler can pay.

TVM's decorators ask for the names and sources of all callers (`inspect.stack`), which they need for
methods of classes and for annotations that name local variables; kernels here have neither. It
reads and parses a function's source whenever that is used, and finds the value of each expression
by compiling Python code. Here a source is parsed once, and `expressions.py` finds the values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from types import CodeType
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.parser._core import Parser, doc, utils
from tvm.script.parser.core.diagnostics import Source
from tvm.tirx import PrimFunc
from tvm.tirx.script.parser.entry import TIRInline

from graphopt.targets.kernels.expressions import value

_PARSER: ContextVar[_Parser] = ContextVar("_PARSER")  # of the kernel that is being built
_PARSED: dict[CodeType, tuple[Source, doc.Module]] = {}


def _parsed(function: Callable[..., None]) -> tuple[Source, doc.Module]:
    code = function.__code__
    if code not in _PARSED:
        source = Source(function)
        _PARSED[code] = source, source.as_ast()
    return _PARSED[code]


class _Parser(Parser):
    def eval_expr(self, node: Any, extra_vars: dict[str, Any] | None = None) -> Any:
        return self.annotate_current_source_span(value(self, node))

    def eval_assign(
        self, target: Any, source: Any, bind_value: Any, allow_shadowing: bool = False
    ) -> dict[str, Any]:
        if not isinstance(target, doc.Name):
            return super().eval_assign(target, source, bind_value, allow_shadowing)
        bound = bind_value(self, target, target.id, source)
        self.var_table.add(target.id, bound, allow_shadowing)
        return {target.id: source}


def prim_func(*, private: bool, s_tir: bool) -> Callable[[Callable[..., None]], PrimFunc]:
    """Decorator of a TVMScript function, which becomes the kernel that it says.

    TVM's parser finds the decorator by its last name, and reads the arguments in the source.
    """

    def kernel(function: Callable[..., None]) -> Any:
        source, tree = _parsed(function)
        parser = _Parser(source, {function.__name__: function.__annotations__})
        token = _PARSER.set(parser)
        try:
            with IRBuilder() as builder, parser.var_table.with_frame():
                for name, captured in utils.inspect_function_capture(function).items():
                    parser.var_table.add(name, captured)
                parser.visit(tree)
        finally:
            _PARSER.reset(token)
        result = builder.get()
        tvm.s_tir.analysis.verify_well_formed(tvm.IRModule.from_expr(result))
        return result

    # by which TVM's parser knows the language
    kernel.dispatch_token = "tirx"  # type: ignore[attr-defined]
    return kernel


class _Inlined(TIRInline):
    def _find_parser_def(self) -> Parser:
        parser = _PARSER.get(None)
        if parser is None:
            raise RuntimeError(f"{self.func.__name__} is for use inside a T.prim_func")
        return parser

    def get_macro_def(self) -> Any:
        (definition,) = _parsed(self.func)[1].body
        return definition


def inlined(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a TVMScript function whose body replaces its calls inside a `T.prim_func`.

    Arguments may be buffers, expressions or any Python object; an `if` on a Python bool is decided
    while the kernel is built.  Mind that `name = expression` declares a *variable* of the kernel, a
    scalar even inside a vectorized loop; `T.meta_var(expression)` gives an expression a name.
    """

    @functools.cache
    def body() -> _Inlined:
        return _Inlined(_parsed(function)[0], utils.inspect_function_capture(function), function)

    def call(*args: Any, **kwargs: Any) -> None:
        body()(*args, **kwargs)

    return call
