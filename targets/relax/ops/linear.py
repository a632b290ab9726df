"""Products of matrices: MatMul, MatMulInteger, Gemm, Einsum, Det."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx
from tvm.script import tirx as T

from graphopt.ir import dims
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.targets.kernels import script
from graphopt.targets.relax import reduction, scalar
from graphopt.targets.relax.broadcast import index_into
from graphopt.targets.relax.lowering import Check, Lowering, compute, int64, lowers
from graphopt.targets.relax.scalar import const, dtype_of

Scalar = Any
# Reads an element of an operand: of its tensors, and where.
Load = Callable[..., Scalar]


@lowers("MatMul")
def _matmul(lower: Lowering, node: Node) -> relax.Expr:
    a, b = _two(node)
    work = scalar.working_dtype(lower.checked_dtype(a.dtype))
    product = matmul(lower, a.tensor.dims, b.tensor.dims, work, [lower.expr(a), lower.expr(b)])
    return narrowed(lower, product, node.output.dtype)


def _two(node: Node) -> tuple[Value, Value]:
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    return a, b


def narrowed(lower: Lowering, x: relax.Expr, dtype: str) -> relax.Expr:
    """`x`, computed in a working dtype, as `dtype`."""
    if str(x.ty.dtype) == dtype:
        return x
    return lower.te(
        lambda t: compute(t.shape, lambda *i: scalar.cast(t(*i), dtype), "narrow"), x, name="narrow"
    )


def matmul(
    lower: Lowering,
    left: Sequence[Dim],
    right: Sequence[Dim],
    work: str,
    args: Sequence[relax.Expr],
    load_left: Load | None = None,
    load_right: Load | None = None,
) -> relax.Expr:
    """The NumPy matrix product of shapes `left` and `right`, accumulated in dtype `work`.

    `load_left(tensors, *indices)` reads an element of the left operand from the TE tensors of
    `args`; by default that is the first tensor, and the second for the right operand.
    """
    rows, columns = list(left[-2:-1]), list(right[-1:]) if len(right) > 1 else []
    batch = broadcast_dims(left[:-2], right[:-2])
    shape = [*batch, *rows, *columns]
    to_left, left_checks = index_into(lower, left[:-2], batch)
    to_right, right_checks = index_into(lower, right[:-2], batch)
    depth, other = left[-1], right[-2] if len(right) > 1 else right[-1]
    checks = [*left_checks, *right_checks, *same_size(lower, depth, other)]
    extent = int64(lower.dim(depth))
    read_left = load_left or (lambda tensors, *i: tensors[0](*i))
    read_right = load_right or (lambda tensors, *i: tensors[1](*i))

    def product(*tensors: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, extent), "k")

        def element(*indices: Any) -> Scalar:
            outer, rest = indices[: len(batch)], list(indices[len(batch) :])
            row, column = rest[: len(rows)], rest[len(rows) :]
            x = read_left(tensors, *to_left(outer), *row, k.var)
            y = read_right(tensors, *to_right(outer), k.var, *column)
            return reduction.total(scalar.cast(x, work) * scalar.cast(y, work), axis=[k])

        return compute([lower.dim(dim) for dim in shape], element, "matmul")

    return lower.te(product, *args, checks=checks)


def broadcast_dims(a: Sequence[Dim], b: Sequence[Dim]) -> list[Dim]:
    """The shape that two shapes broadcast to."""
    rank = max(len(a), len(b))
    padded = [[*[1] * (rank - len(shape)), *shape] for shape in (a, b)]
    return [_wider(x, y) for x, y in zip(*padded)]


def _wider(x: Dim, y: Dim) -> Dim:
    if x == y or y == 1:
        return x
    if x == 1 or isinstance(y, int):
        return y
    return x if isinstance(x, int) else dims.maximum(x, y)


def same_size(lower: Lowering, a: Dim, b: Dim) -> list[Check]:
    """What must hold at run time for two sizes to be equal."""
    if a == b:
        return []
    equal = tirx.EQ(int64(lower.dim(a)), int64(lower.dim(b)))
    return [(equal, f"sizes {a} and {b} must be equal")]


# -------------------------------------------------------------------- integers


@lowers("MatMulInteger")
def _matmul_integer(lower: Lowering, node: Node) -> relax.Expr:
    return integer_matmul(lower, *_two(node), node.input(2), node.input(3))


def integer_matmul(
    lower: Lowering, a: Value, b: Value, a_zero: Value | None, b_zero: Value | None
) -> relax.Expr:
    """The int32 product of `a - a_zero` and `b - b_zero`.

    A zero point is one number, or one a row of `a` and one a column of `b`.
    """
    args = [lower.expr(value) for value in (a, b, a_zero, b_zero) if value is not None]
    places = iter(range(2, len(args)))
    left = _shifted(0, a_zero, next(places) if a_zero else 0, vector_axis=-2)
    right = _shifted(1, b_zero, next(places) if b_zero else 0, vector_axis=-1)
    return matmul(lower, a.tensor.dims, b.tensor.dims, "int32", args, left, right)


def _shifted(place: int, zero: Value | None, zero_place: int, vector_axis: int) -> Load:
    def load(tensors: Sequence[te.Tensor], *i: Any) -> Scalar:
        element = scalar.cast(tensors[place](*i), "int32")
        if zero is None:
            return element
        shape = zero.tensor.dims
        if len(shape) == 1:
            at = [int64(0) if shape[0] == 1 else i[vector_axis]]
        else:
            at = [int64(0) if size == 1 else i[k - len(shape)] for k, size in enumerate(shape)]
        return element - scalar.cast(tensors[zero_place](*at), "int32")

    return load


# ------------------------------------------------------------------------ Gemm


@lowers("Gemm")
def _gemm(lower: Lowering, node: Node) -> relax.Expr:
    a, b = _two(node)
    dtype = lower.checked_dtype(node.output.dtype)
    work = scalar.working_dtype(dtype)
    shapes, loads = [], []
    for place, (value, flag) in enumerate(((a, "transA"), (b, "transB"))):
        turned = bool(node.attr(flag))
        shapes.append(value.tensor.dims[::-1] if turned else value.tensor.dims)
        loads.append(_turned(place) if turned else None)
    left, right = shapes
    product = matmul(lower, left, right, work, [lower.expr(a), lower.expr(b)], *loads)
    return _finished(lower, node, product, work)


def _turned(place: int) -> Load:
    return lambda tensors, i, j: tensors[place](j, i)


def _finished(lower: Lowering, node: Node, product: relax.Expr, work: str) -> relax.Expr:
    """alpha * product + beta * C."""
    addend = node.input(2)
    alpha, beta = node.attr("alpha"), node.attr("beta")
    target, dtype = node.output.tensor.dims, node.output.dtype
    to_addend, checks = index_into(lower, addend.tensor.dims if addend else (), target)

    def finish(p: te.Tensor, *c: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Scalar:
            value = _scaled(p(*i), alpha)
            if c:
                value = value + _scaled(scalar.cast(c[0](*to_addend(i)), work), beta)
            return scalar.cast(value, dtype)

        return compute(p.shape, element, "finish")

    if addend is None and alpha == 1 and work == dtype:
        return product
    extra = [lower.expr(addend)] if addend is not None else []
    return lower.te(finish, product, *extra, checks=checks)


def _scaled(x: Scalar, factor: float) -> Scalar:
    """`x * factor`; for integers the product is cut off, as NumPy does on the way back."""
    if factor == 1:
        return x
    dtype = dtype_of(x)
    if scalar.is_float(dtype) or factor == int(factor):
        return x * const(factor if scalar.is_float(dtype) else int(factor), dtype)
    return scalar.cast(scalar.cast(x, "float64") * const(factor, "float64"), dtype)


# ---------------------------------------------------------------------- Einsum


@lowers("Einsum")
def _einsum(lower: Lowering, node: Node) -> relax.Expr:
    operands = node.operands
    terms, result = _parsed(lower, node, operands)
    sizes, checks = _letter_sizes(lower, terms, operands)
    work = scalar.working_dtype(lower.checked_dtype(node.output.dtype))
    summed = [letter for letter in sizes if letter not in result]

    def product(*tensors: te.Tensor) -> te.Tensor:
        loops = {c: te.reduce_axis((0, int64(lower.dim(sizes[c]))), f"k{c}") for c in summed}

        def element(*indices: Any) -> Scalar:
            at = dict(zip(result, indices)) | {c: loop.var for c, loop in loops.items()}
            factors = [
                scalar.cast(tensor(*_places(term, value, sizes, at)), work)
                for tensor, term, value in zip(tensors, terms, operands)
            ]
            value = functools.reduce(operator.mul, factors)
            return reduction.total(value, axis=list(loops.values())) if loops else value

        return compute([lower.dim(sizes[c]) for c in result], element, "einsum")

    args = [lower.expr(value) for value in operands]
    return narrowed(lower, lower.te(product, *args, checks=checks), node.output.dtype)


def _places(
    term: Sequence[str], value: Value, sizes: dict[str, Dim], at: dict[str, Any]
) -> list[Any]:
    shape = value.tensor.dims
    return [int64(0) if s == 1 and sizes[c] != 1 else at[c] for c, s in zip(term, shape)]


def _parsed(
    lower: Lowering, node: Node, operands: Sequence[Value]
) -> tuple[list[list[str]], list[str]]:
    """The axes of each operand and of the result, named; those of an ellipsis are "0", "1", …"""
    equation = node.attr("equation")
    text = (equation.decode() if isinstance(equation, bytes) else equation).replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(operands):
        raise lower.unsupported(f"{text!r} does not fit {len(operands)} inputs")
    width = max(
        0, *(len(v.tensor.dims) - len(p.replace("...", "")) for p, v in zip(parts, operands))
    )
    terms = [_axes(p, len(v.tensor.dims), width) for p, v in zip(parts, operands)]
    if any(len(term) != len(v.tensor.dims) for term, v in zip(terms, operands)):
        raise lower.unsupported(f"{text!r} does not fit the ranks of its inputs")
    if arrow:
        return terms, _axes(right, width + len(right.replace("...", "")), width)
    used = [c for term in terms for c in term]
    free = sorted({c for c in used if c.isalpha() and used.count(c) == 1})
    return terms, [*(str(k) for k in range(width) if "..." in left), *free]


def _axes(part: str, rank: int, width: int) -> list[str]:
    """`part` with its ellipsis spelt out: the last of `width` axes that fill it up to `rank`."""
    before, dots, after = part.partition("...")
    count = rank - len(before) - len(after) if dots else 0
    return [*before, *(str(k) for k in range(width - count, width)), *after]


def _letter_sizes(
    lower: Lowering, terms: Sequence[Sequence[str]], operands: Sequence[Value]
) -> tuple[dict[str, Dim], list[Check]]:
    sizes: dict[str, Dim] = {}
    for term, value in zip(terms, operands):
        for letter, size in zip(term, value.tensor.dims):
            sizes[letter] = _wider(sizes.get(letter, 1), size)
    checks: list[Check] = []
    for term, value in zip(terms, operands):
        for letter, size in zip(term, value.tensor.dims):
            if size != 1:
                checks += same_size(lower, size, sizes[letter])
    return sizes, checks


# ------------------------------------------------------------------------- Det


@lowers("Det")
def _det(lower: Lowering, node: Node) -> relax.Expr:
    return det(lower, node, _by_elimination)


def det(
    lower: Lowering, node: Node, emit: Callable[[Lowering, relax.Expr], relax.Expr]
) -> relax.Expr:
    """Det, where `emit` makes the determinants [count] of matrices [count, n, n]."""
    (value,) = node.inputs
    assert value is not None
    shape = value.tensor.dims
    lower.checked_dtype(value.dtype)
    if not isinstance(shape[-1], int):
        raise lower.unsupported("the size of its matrices is known only at run time")
    count = lower.dim(dims.product(shape[:-2]))
    flat = lower.reshape(lower.expr(value), [count, shape[-2], shape[-1]])
    return lower.reshape(emit(lower, flat), lower.shape(node.output))


def _by_elimination(lower: Lowering, flat: relax.Expr) -> relax.Expr:
    (count, n, _), dtype = flat.ty.shape.values, str(flat.ty.dtype)
    (result,) = lower.kernel(_determinants(int(n), dtype), [flat], [([count], dtype)])
    return result


def _determinants(n: int, dtype: str) -> tirx.PrimFunc:
    """Kernel (x[count, n, n]) -> out[count], by elimination with partial pivoting."""
    work = scalar.working_dtype(dtype)

    @script.prim_func(private=True, s_tir=True)
    def det(x: T.handle, out: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        count = T.int64()
        source = T.match_buffer(x, (count, n, n), dtype)
        target = T.match_buffer(out, (count,), dtype)
        for b in range(count):
            m = T.decl_buffer((n, n), work, scope="local")
            product = T.decl_buffer((1,), work, scope="local")
            pivot = T.decl_buffer((1,), "int32", scope="local")
            factor = T.decl_buffer((1,), work, scope="local")
            for i, j in T.grid(n, n):
                m[i, j] = T.Cast(work, source[b, i, j])
            product[0] = T.Cast(work, 1)
            for k in range(n):
                pivot[0] = k
                for i in range(k + 1, n):
                    if T.abs(m[i, k]) > T.abs(m[pivot[0], k]):
                        pivot[0] = i
                if pivot[0] != k:
                    product[0] = T.Cast(work, 0) - product[0]
                    for j in range(n):
                        factor[0] = m[k, j]
                        m[k, j] = m[pivot[0], j]
                        m[pivot[0], j] = factor[0]
                product[0] = product[0] * m[k, k]
                if m[k, k] != T.Cast(work, 0):
                    for i in range(k + 1, n):
                        factor[0] = m[i, k] / m[k, k]
                        for j in range(k, n):
                            m[i, j] = m[i, j] - factor[0] * m[k, j]
            result = T.meta_var(scalar.cast(product[0], dtype))
            target[b] = result

    return det
