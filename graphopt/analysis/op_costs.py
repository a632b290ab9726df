"""What each op costs: the rules of ONNX's ops and of ours that every target has.

Targets register those of their own ops where these are made.
"""

from __future__ import annotations

from graphopt.analysis.cost import (
    Cost,
    UnknownCost,
    cost_rule,
    dims_of,
    done_by,
    dtype_bits,
    elements,
    nbytes,
    node_cost,
    streaming,
)
from graphopt.ir import dims
from graphopt.ir.control import loop_trip_count
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Graph, Node

# ------------------------------------------------------------------ element by element

_VIEWS = (
    *("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Shape", "Size", "Dropout"),
    *("Constant", "SequenceEmpty", "SequenceLength", "OptionalHasElement"),
)
_UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu"),
    *("Clip", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round"),
    *("Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish"),
    *("Tan", "Tanh", "ThresholdedRelu"),
)
_BINARY = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu"),
    *("Pow", "Sub", "Sum", "Xor"),
)
_MOVES = (
    *("Cast", "CastLike", "Concat", "ConstantOfShape", "DepthToSpace", "EyeLike", "OneHot", "Pad"),
    *("Range", "ReverseSequence", "SpaceToDepth", "Split", "Tile", "Expand", "Transpose", "Trilu"),
    *("Where", "NonZero", "Compress", "ConcatFromSequence", "SequenceAt", "SequenceInsert"),
    *("SequenceConstruct", "SplitToSequence", "RandomNormalLike", "RandomUniformLike"),
    *("ScatterElements", "ScatterND", "Scatter"),
)
_PER_INPUT_ELEMENT = {
    **dict.fromkeys(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"], 1),
    **dict.fromkeys(["ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"], 2),
    **dict.fromkeys(["ReduceLogSum", "ArgMax", "ArgMin", "CumSum", "TopK", "Unique", "Hardmax"], 1),
    **dict.fromkeys(["GlobalAveragePool", "GlobalMaxPool"], 1),
    **dict.fromkeys(["Softmax", "LogSoftmax"], 5),  # max, subtract, exp, sum, divide
    **dict.fromkeys(["QuantizeLinear", "DequantizeLinear", "BatchNormalization"], 2),
    # mean, subtract, square, sum, scale by the deviation, scale, shift
    **dict.fromkeys(["LayerNormalization", "InstanceNormalization", "GroupNormalization"], 7),
    **{"RMSNormalization": 4, "LpNormalization": 3, "DynamicQuantizeLinear": 4},
}


@cost_rule(*_VIEWS)
def _view(node: Node) -> Cost:
    return Cost()


@cost_rule(*_UNARY)
def _unary(node: Node) -> Cost:
    return streaming(node, elements(node.output))


@cost_rule(*_BINARY)
def _binary(node: Node) -> Cost:
    return streaming(node, elements(node.output) * max(1, len(node.inputs) - 1))


@cost_rule(*_MOVES)
def _move(node: Node) -> Cost:
    return streaming(node, 0)


@cost_rule(*_PER_INPUT_ELEMENT)
def _per_input_element(node: Node) -> Cost:
    return streaming(node, elements(node.inputs[0]) * _PER_INPUT_ELEMENT[node.op_type])


@cost_rule("Slice")
def _slice(node: Node) -> Cost:
    taken = nbytes(node.output)
    return Cost(0, taken, taken)


@cost_rule("AveragePool", "MaxPool", "LpPool")
def _pool(node: Node) -> Cost:
    return streaming(node, elements(node.output) * dims.product(node.attr("kernel_shape")))


# -------------------------------------------------------------------------- products


@cost_rule("MatMul", "MatMulInteger", "QLinearMatMul")
def _matmul(node: Node) -> Cost:
    return streaming(node, 2 * elements(node.output) * dims_of(node, 0)[-1])


@cost_rule("Gemm")
def _gemm(node: Node) -> Cost:
    inner = dims_of(node, 0)[0 if node.attr("transA") else 1]
    out = elements(node.output)
    return streaming(node, 2 * out * inner + (out if node.input(2) is not None else 0))


@cost_rule("Attention", domain="graphopt")
def _attention(node: Node) -> Cost:
    samples, keys, _ = dims_of(node, 1)
    scores = samples * dims_of(node, 0)[1] * keys * node.attr("heads")
    others = sum(node.input(slot) is not None for slot in (3, 4))
    return streaming(
        node, scores * (done_by(node.attrs.get("instruction"), 4 * node.attr("dim")) + 6 + others)
    )  # scale and softmax: 6


@cost_rule("DotInteraction", domain="graphopt")
def _dot_interaction(node: Node) -> Cost:
    samples, _, dim = dims_of(node, 0)
    return streaming(node, 2 * samples * dim * len(node.attr("pairs")))


@cost_rule("PairProducts", domain="graphopt")
def _pair_products(node: Node) -> Cost:
    samples, count, dim = dims_of(node, 0)
    matrices = node.attr("matrices") or ()  # each multiplies a left feature once
    multiplied = len({(p // count, k) for p, k in zip(node.attr("pairs"), matrices)})
    return streaming(node, elements(node.output) + 2 * samples * dim * dim * multiplied)


@cost_rule("CrossNetwork", domain="graphopt")
def _cross_network(node: Node) -> Cost:
    rows, width = dims_of(node, 0)
    layers = dims_of(node, 1)[1]
    return streaming(node, rows * (2 * width * layers + 3 * layers + 2 * width))


@cost_rule("CompressedInteraction", domain="graphopt")
def _compressed_interaction(node: Node) -> Cost:
    pairs = dims_of(node, 2)[0]
    samples, _, dim = dims_of(node, 0)
    products = done_by(node.attrs.get("instruction"), 2 * pairs)
    return streaming(node, samples * dim * pairs + elements(node.output) * products)


@cost_rule("BiInteraction", domain="graphopt")
def _bi_interaction(node: Node) -> Cost:
    return streaming(node, 3 * elements(node.inputs[0]))  # add up, square, add up


@cost_rule("Conv", "ConvInteger", "QLinearConv")
def _conv(node: Node) -> Cost:
    weight = dims_of(node, 3 if node.op_type == "QLinearConv" else 1)
    out = elements(node.output)
    bias = {"Conv": 2, "QLinearConv": 8}.get(node.op_type)
    added = out if bias is not None and node.input(bias) is not None else 0
    return streaming(node, 2 * out * dims.product(weight[1:]) + added)


@cost_rule("ConvTranspose")
def _conv_transpose(node: Node) -> Cost:
    added = elements(node.output) if node.input(2) is not None else 0
    products = elements(node.inputs[0]) * dims.product(dims_of(node, 1)[1:])
    return streaming(node, 2 * products + added)


@cost_rule("Einsum")
def _einsum(node: Node) -> Cost:
    """Contracts all operands at once; a term is one multiply per further operand and one add."""
    equation = node.attr("equation")
    text = equation.decode() if isinstance(equation, bytes) else equation
    left, arrow, right = text.replace(" ", "").partition("->")
    sizes: dict[str, Dim] = {}
    for k, term in enumerate(left.split(",")):
        shape = dims_of(node, k)
        rest = len(shape) - len(term.replace("...", ""))
        labels = [*term.partition("...")[0], *(f".{i}" for i in range(rest, 0, -1))]
        sizes.update(zip([*labels, *term.partition("...")[2]], shape))
    letters = [c for c in left if c.isalpha()]
    kept = set(right) if arrow else {c for c in letters if letters.count(c) == 1}
    terms = dims.product(sizes.values())
    adds = any(label.isalpha() and label not in kept for label in sizes)
    return streaming(node, terms * (len(node.inputs) - 1 + adds))


_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4, "AttentionalGRU": 3}
_COMBINE = {"RNN": 0, "GRU": 5, "LSTM": 5, "AttentionalGRU": 5}  # LSTM: f*c + i*g, tanh, o*tanh(c)


@cost_rule("AttentionalGRU", "GRU", domain="graphopt")
@cost_rule("RNN", "GRU", "LSTM")
def _recurrent(node: Node) -> Cost:
    """All steps of all samples, whatever `sequence_lens` says at run time."""
    steps = dims.product(dims_of(node, 0)[:2])
    directions, _, hidden = dims_of(node, 2)
    products = 2 * steps * (elements(node.inputs[1]) + elements(node.inputs[2]))
    per_unit = 3 * _GATES[node.op_type] + _COMBINE[node.op_type]  # two adds, one activation a gate
    return streaming(node, products + steps * directions * hidden * per_unit)


# --------------------------------------------------------------------------- lookups


@cost_rule("Gather", "GatherElements", "GatherND")
def _gather(node: Node) -> Cost:
    taken = nbytes(node.output)
    return Cost(0, taken + nbytes(node.inputs[1]), taken)


@cost_rule("DynamicMatMul", domain="graphopt")
def _dynamic_matmul(node: Node) -> Cost:
    rows = elements(node.inputs[0])  # find the range of each, and round
    return streaming(node, 2 * elements(node.output) * dims_of(node, 0)[-1] + 5 * rows)


@cost_rule("StoredWeights", domain="graphopt")
def _stored_weights(node: Node) -> Cost:
    return streaming(node, 2 * elements(node.output))


@cost_rule("TableRows", domain="graphopt")
def _table_rows(node: Node) -> Cost:
    return streaming(node, 2 * elements(node.output))


@cost_rule("QuantizedLookup", "QuantizedEmbeddingBag", domain="graphopt")
def _quantized_lookup(node: Node) -> Cost:
    """Inputs: codes, scales, ids; a multiplication for each element and, in bags, an addition."""
    codes, scales, ids, *offsets = node.inputs
    assert codes is not None and scales is not None
    row = dims_of(node, 0)[1] + dtype_bits(scales.dtype) // 8
    read = elements(ids) * row + nbytes(ids, *offsets)
    per_element = 1 if node.op_type == "QuantizedLookup" else 2
    flops = per_element * elements(ids) * node.output.tensor.dims[-1]
    return Cost(flops, read, nbytes(node.output))


@cost_rule("ProductLookup", "ProductEmbeddingBag", domain="graphopt")
def _product_lookup(node: Node) -> Cost:
    """Inputs: codes, codebooks, ids; a byte is read for each part, codebooks stay in a cache."""
    ids, *offsets = node.inputs[2:]
    assert ids is not None
    added = elements(ids) * node.output.tensor.dims[-1] if "Bag" in node.op_type else 0
    return Cost(
        added, elements(ids) * dims_of(node, 0)[1] + nbytes(ids, *offsets), nbytes(node.output)
    )


@cost_rule("EmbeddingBag", domain="graphopt")
def _embedding_bag(node: Node) -> Cost:
    """Inputs: table, ids, then offsets and per-sample weights where there are any."""
    table, ids = node.inputs[0], node.inputs[1]
    assert table is not None
    width = dims.product(dims_of(node, 0)[1:])
    rows = elements(ids)
    weighted = node.input(3) is not None
    row_bytes = dims.ceildiv(rows * width * dtype_bits(table.dtype), 8)
    mode = node.attr("mode", "sum")
    divide = elements(node.output) if mode in ("mean", b"mean") else 0
    flops = rows * width * (2 if weighted else 1) + divide
    return Cost(flops, row_bytes + nbytes(*node.inputs[1:]), nbytes(node.output))


@cost_rule("EmbeddingBags", domain="graphopt")
def _embedding_bags(node: Node) -> Cost:
    """Inputs: the stacked tables, their sizes and starts, offsets, ids of every field."""
    rows: Dim = sum((elements(ids) for ids in node.inputs[4:]), 0)
    taken = rows * dims.product(dims_of(node, 0)[1:])
    divide = elements(node.output) if node.attr("mode") == "mean" else 0
    return Cost(taken + divide, 4 * taken + nbytes(*node.inputs[1:]), nbytes(node.output))


# ---------------------------------------------------------------------- control flow


def _body(graph: Graph) -> Cost:
    total = Cost()
    for node in graph.nodes:
        total = total + node_cost(node)
    return total


@cost_rule("Loop")
def _loop(node: Node) -> Cost:
    count = loop_trip_count(node)
    if count is None:
        raise UnknownCost("Loop: the trip count is known only at run time")
    return _body(node.attrs["body"]).times(count)


@cost_rule("Scan")
def _scan(node: Node) -> Cost:
    states = len(node.inputs) - node.attr("num_scan_inputs")
    axis = (node.attr("scan_input_axes") or [0])[0]
    return _body(node.attrs["body"]).times(dims_of(node, states)[axis])


@cost_rule("If")
def _if(node: Node) -> Cost:
    """The dearer branch."""
    then, other = (_body(node.attrs[name]) for name in ("then_branch", "else_branch"))
    return Cost(
        dims.maximum(then.flops, other.flops),
        dims.maximum(then.read, other.read),
        dims.maximum(then.written, other.written),
    )
