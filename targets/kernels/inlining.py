"""`T.inline` at a cost that a compiler can pay.

On every call TVM looks for its parser with `inspect.getouterframes`, which reads the source of each
caller: 10 to 50 ms a call, growing with the depth of the stack; a bidirectional LSTM makes 24.
Here the stack is walked without reading sources, and the body is parsed into a tree only once.
"""

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any

from tvm.script.parser._core import scan_macro, utils
from tvm.tirx.script.parser.entry import TIRInline


class _Inlined(TIRInline):
    def _find_parser_def(self) -> Any:
        frame = inspect.currentframe()
        while frame is not None:
            parser = frame.f_globals.get(self.parser_object_name)
            if parser is not None:
                return parser
            frame = frame.f_back
        raise RuntimeError(f"{self.func.__name__} is for use inside a T.prim_func")

    @cached_property
    def _tree(self) -> Any:
        return super().get_macro_def()

    def get_macro_def(self) -> Any:
        return self._tree


def inlined(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a TVMScript function whose body replaces its calls inside a `T.prim_func`.

    Arguments may be buffers, expressions or any Python object; an `if` on a Python bool is decided
    while the kernel is built.  Mind that `name = expression` declares a *variable* of the kernel, a
    scalar even inside a vectorized loop; `T.meta_var(expression)` gives an expression a name.
    """
    source, captured = scan_macro(function, utils.inspect_function_capture(function))
    body = _Inlined(source, captured, function)

    def call(*args: Any, **kwargs: Any) -> None:
        body(*args, **kwargs)

    return call
