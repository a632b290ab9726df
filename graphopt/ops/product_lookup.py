"""`graphopt::ProductLookup`: rows of a table that is stored as parts out of small codebooks.

Inputs: `codes` uint8[rows, parts], `books` float[parts * 256, width] (16 or 32 bits), `ids`
int[...]. A row is its parts one after another, part p being row `256 * p + codes[id, p]` of the
books. Output: float32[..., parts * width]. Negative ids count from the end. (Jegou et al., "Product
quantization for nearest neighbor search", 2011.)
"""

from __future__ import annotations

import numpy as np
import onnx

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.ops.definition import local_function, tensor_inputs

DOMAIN = "graphopt"
OP_TYPE = "ProductLookup"
ENTRIES = 256  # of a codebook


def product_lookup(codes: np.ndarray, books: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """What the op computes, in NumPy."""
    at = codes[ids] + ENTRIES * np.arange(codes.shape[1])
    return books[at].astype(np.float32).reshape(*ids.shape, -1)


def check_books(node: Node) -> Dim:
    """The width of a row of the table that inputs 0 and 1 of `node` describe; 2 are the ids.

    Raises:
        InvalidModelError: they do not fit each other.
    """
    codes, books, ids = tensor_inputs(node, "codes", "books", "ids", more=True)
    if (codes.rank, codes.dtype) != (2, "uint8"):
        raise failure(node, f"{codes} are no codes")
    parts = codes.dims[1]
    if books.rank != 2 or books.dtype not in ("float16", "float32"):
        raise failure(node, f"{books} are no codebooks")
    if not isinstance(parts, int) or books.dims[0] != ENTRIES * parts:
        raise failure(node, f"{books} are not {parts} codebooks")
    if ids.dtype not in ("int32", "int64"):
        raise failure(node, f"{ids} are no ids")
    return parts * books.dims[1]


@type_rule(OP_TYPE, domain=DOMAIN)
def _product_lookup(node: Node) -> list[Type | None]:
    dim, ids = check_books(node), node.inputs[2]
    assert ids is not None
    shape = None if ids.shape is None else [*ids.tensor.dims, dim]
    return [tensor_type("float32", shape)]


def parts_of(node: Node) -> int:
    """How many parts a row of the table of `node` has."""
    codes = node.inputs[0]
    assert codes is not None
    parts = codes.tensor.dims[1]
    assert isinstance(parts, int)
    return parts


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return f"{OP_TYPE}__{parts_of(node)}_parts"


def assembled(parts: int, ids: str) -> str:
    """Lines of a function body: `found` [..., parts * width], the rows of `ids` as floats."""
    starts = ", ".join(str(ENTRIES * k) for k in range(parts))
    return f"""
        starts_of_books = Constant <value_ints = [{starts}]> ()
        all_parts = Constant <value_ints = [-1]> ()
        rows = Gather <axis = 0> (codes, {ids})
        wide_rows = Cast <to = 7> (rows)
        entries = Add (wide_rows, starts_of_books)
        stored_parts = Gather <axis = 0> (books, entries)
        parts = Cast <to = 1> (stored_parts)
        leading = Shape ({ids})
        shape_of_rows = Concat <axis = 0> (leading, all_parts)
        found = Reshape (parts, shape_of_rows)"""


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    body = assembled(parts_of(node), "ids")
    return local_function(node, function_name(node), "(codes, books, ids) => (found)", body)
