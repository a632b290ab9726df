"""`T.prim_func` at a cost that a compiler can pay.

TVM's decorator asks for the names and sources of all callers (`inspect.stack`), twice for a kernel:
a third of the time that a small model takes to compile. It needs them for methods of classes, and
for annotations that are strings and name local variables; kernels here are neither.
"""

from collections.abc import Callable
from typing import Any

from tvm.script.parser._core import parse, utils
from tvm.tirx import PrimFunc


def prim_func(*, private: bool, s_tir: bool) -> Callable[[Callable[..., None]], PrimFunc]:
    """Decorator of a TVMScript function, which becomes the kernel that it says.

    TVM's parser finds the decorator by its last name, and reads the arguments in the source.
    """

    def kernel(function: Callable[..., None]) -> Any:
        return parse(function, utils.inspect_function_capture(function))

    # by which TVM's parser knows the language
    kernel.dispatch_token = "tirx"  # type: ignore[attr-defined]
    return kernel
