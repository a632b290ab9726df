"""`graphopt::PairProducts`: products, element by element, of chosen pairs of feature vectors.

Inputs: `features` float[n, f, d]; optional `weights` float[g, d, d]. Attributes: `pairs`, one or
more positions `i * f + j`; with weights `matrices`, an index below g for each pair; `gathered` (0),
which of two bodies the op has. Output: float[n, len(pairs), d], for features i and j `x_i * x_j`,
or, with weights, `(x_i @ weights[k]) * x_j`. (The bilinear interaction of FiBiNET: Huang et al.,
2019; products in AFM: Xiao et al., 2017; in PNN: Qu et al., 2016; in FFM: Juan et al., 2016.)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import onnx

from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import TensorType, Type, is_float
from graphopt.ops.definition import local_function

DOMAIN = "graphopt"
OP_TYPE = "PairProducts"


@type_rule(OP_TYPE, domain=DOMAIN)
def _pair_products(node: Node) -> list[Type | None]:
    features, weights = (None if v is None else v.type for v in (*node.inputs, None)[:2])
    if not isinstance(features, TensorType) or features.rank != 3 or not is_float(features.dtype):
        raise failure(node, f"features must be float[n, f, d], not {features}")
    samples, count, dim = features.dims
    pairs, matrices = node.attr("pairs"), node.attr("matrices")
    if not pairs or not isinstance(count, int) or not all(0 <= p < count**2 for p in pairs):
        raise failure(node, f"pairs must be positions in [0, f * f) with f = {count}, not {pairs}")
    if weights is not None:
        if not isinstance(weights, TensorType) or weights.dims[1:] != (dim, dim):
            raise failure(node, f"weights must be {features.dtype}[g, {dim}, {dim}], not {weights}")
        known = weights.dims[0] if isinstance(weights.dims[0], int) else 0
        if len(matrices or ()) != len(pairs) or not all(0 <= k < known for k in matrices):
            raise failure(
                node, f"matrices must be an index below {known} for each pair, not {matrices}"
            )
    return [tensor_type(features.dtype, [samples, len(pairs), dim])]


def sides(node: Node) -> tuple[list[int], list[int], list[int]]:
    """The left feature of each pair, its right one, and the matrix of the left one, or -1."""
    features = node.inputs[0]
    assert features is not None
    count, pairs = features.tensor.dims[1], node.attr("pairs")
    assert isinstance(count, int)
    left, right = [p // count for p in pairs], [p % count for p in pairs]
    return left, right, list(node.attr("matrices") or [-1] * len(pairs))


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported; its body has the pairs."""
    assert node.inputs[0] is not None
    form = repr((sides(node), node.inputs[0].tensor.dims[1])).encode()
    words = ["weighted"] * (node.input(1) is not None) + ["gathered"] * node.attr("gathered", 0)
    return f"{OP_TYPE}__{''.join(f'{word}_' for word in words)}{zlib.crc32(form):08x}"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes.

    In ONNX Runtime, gathering all left and all right features is up to ten times as fast for single
    samples as parting the features and joining their products, and up to twice as slow for many.
    """
    weighted, gathered = node.input(1) is not None, node.attr("gathered", 0)
    if gathered:
        lines = _gathered_weighted(node) if weighted else _gathered(*sides(node)[:2])
    else:
        lines = _parted_weighted(node) if weighted else _parted(node)
    name, signature = function_name(node), f"(features{', weights' * weighted}) => (products)"
    attributes, defaults = ["pairs", "matrices"][: 1 + weighted], {"gathered": gathered}
    return local_function(node, name, signature, "\n".join(lines), attributes, defaults)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _ints(name: str, values: Sequence[int]) -> str:
    return f"{name} = Constant<value_ints = [{_listed(map(str, values))}]>()"


def _gathered(left: list[int], right: list[int], features: str = "features") -> list[str]:
    return [
        *(_ints("i", left), _ints("j", right)),
        f"left = Gather<axis = 1>({features}, i)",
        "right = Gather<axis = 1>(features, j)",
        "products = Mul(left, right)",
    ]


def _gathered_weighted(node: Node) -> list[str]:
    """Lines that multiply all features with one matrix, or for each matrix all samples at once."""
    left, right, matrices = sides(node)
    if len(set(matrices)) == 1:
        own = [_ints("k", matrices[:1]), _ints("zero", [0])]
        own += ["slice = Gather<axis = 0>(weights, k)", "matrix = Squeeze(slice, zero)"]
        own += ["multiplied = MatMul(features, matrix)"]
        return own + _gathered(left, right, "multiplied")
    groups = list(dict.fromkeys(zip(left, matrices)))
    own = [_ints("of", [groups.index(group) for group in zip(left, matrices)])]
    return [
        *(
            _ints("i", [i for i, _ in groups]),
            _ints("j", right),
            _ints("k", [k for _, k in groups]),
        ),
        "turned = Transpose<perm = [1, 0, 2]>(features)",
        "all = Gather<axis = 0>(turned, i)",
        "matrix = Gather<axis = 0>(weights, k)",
        "multiplied = MatMul(all, matrix)",
        *(own + ["left = Gather<axis = 0>(multiplied, of)"] if len(groups) < len(left) else []),
        "right = Gather<axis = 0>(turned, j)",
        f"both = Mul({'left' if len(groups) < len(left) else 'multiplied'}, right)",
        "products = Transpose<perm = [1, 0, 2]>(both)",
    ]


def _parts(node: Node) -> str:
    assert node.inputs[0] is not None
    count = node.inputs[0].tensor.dims[1]
    assert isinstance(count, int)
    names = _listed(f"x{k}" for k in range(count))
    return f"{names} = Split<axis = 1, num_outputs = {count}>(features)"


def _parted(node: Node) -> list[str]:
    left, right, _ = sides(node)
    return [
        _parts(node),
        f"left = Concat<axis = 1>({_listed(f'x{k}' for k in left)})",
        f"right = Concat<axis = 1>({_listed(f'x{k}' for k in right)})",
        "products = Mul(left, right)",
    ]


def _parted_weighted(node: Node) -> list[str]:
    """Lines that multiply each feature once with each of its matrices."""
    weights, (left, right, matrices) = node.inputs[1], sides(node)
    assert weights is not None
    count = weights.tensor.dims[0]
    assert isinstance(count, int)
    slices = _listed(f"s{k}" for k in range(count))
    return [
        _parts(node),
        f"{slices} = Split<axis = 0, num_outputs = {count}>(weights)",
        _ints("zero", [0]),
        *(f"w{k} = Squeeze(s{k}, zero)" for k in range(count)),
        *(f"m{i}_{k} = MatMul(x{i}, w{k})" for i, k in dict.fromkeys(zip(left, matrices))),
        *(f"p{n} = Mul(m{i}_{k}, x{j})" for n, (i, j, k) in enumerate(zip(left, right, matrices))),
        f"products = Concat<axis = 1>({_listed(f'p{n}' for n in range(len(left)))})",
    ]
