"""Attention and the layers next to it as ONNX Runtime's optimizer for transformers writes them.

Its CPU kernels are what the adapters here follow: masks are added to the scores, not multiplied,
and a causal mask hides what comes later altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.ir.contrib_steps import Adapter, Steps
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Value
from graphopt.ir.types import dtype_to_onnx

_INT64 = dtype_to_onnx("int64")


def attention(do: Steps, attrs: dict[str, Any]) -> Sequence[Value]:
    """Queries, keys and values out of one product, then attention; `past` goes before them."""
    if attrs.get("do_rotary") or attrs.get("past_present_share_buffer"):
        raise do.call.unsupported("it rotates positions or shares a buffer of past keys")
    joined = do("MatMul", do.value(0), do.value(1))
    if do.input(2) is not None:
        joined = do("Add", joined, do.value(2))
    return _self_attended(do, joined, (do.input(3), do.input(4), do.input(5)), attrs)


def quantized_attention(do: Steps, attrs: dict[str, Any]) -> Sequence[Value]:
    """The same with codes of 8 bits for what the first product multiplies."""
    if attrs.get("do_rotary") or attrs.get("past_present_share_buffer"):
        raise do.call.unsupported("it rotates positions or shares a buffer of past keys")
    scale = do("Mul", do.value(3), do.value(4))
    joined = do.product([do.input(k) for k in (0, 1, 6, 7)], scale, do.input(2))
    return _self_attended(do, joined, (do.input(5), do.input(8), None), attrs)


def _self_attended(
    do: Steps,
    joined: Value,
    beside: tuple[Value | None, Value | None, Value | None],
    attrs: dict[str, Any],
) -> Sequence[Value]:
    """Attention of queries, keys and values side by side, with a mask, past keys and a bias."""
    mask, past, bias = beside
    widths = attrs.get("qkv_hidden_sizes")
    if widths is not None and len(widths) != 3:
        raise do.call.invalid("qkv_hidden_sizes must be three numbers")
    thirds = {"num_outputs": 3} if widths is None else {}
    sizes = [] if widths is None else [_ints(do, widths)]
    split = do.graph.insert(
        "Split", [joined, *sizes], {"axis": -1, **thirds}, outputs=3, origin=do.call.origin
    )
    heads = [_heads(do, part, attrs) for part in split.outputs]
    present: list[Value] = []
    if past is not None:
        heads[1:] = [
            do("Concat", do("Gather", past, _int(do, k), axis=0), heads[1 + k], axis=2)
            for k in (0, 1)
        ]
    if len(do.call.outputs) > 1:
        present = [do("Concat", *(do("Unsqueeze", h, _ints(do, [0])) for h in heads[1:]), axis=0)]
    return [_attended(do, heads, mask, bias, attrs), *present]


def multi_head_attention(do: Steps, attrs: dict[str, Any]) -> Sequence[Value]:
    """Attention of queries, keys and values that were projected before; returns also the keys
    and values that it looked at, where they are asked for."""
    if do.input(1) is None or do.input(2) is None or do.value(1).rank == 5:
        raise do.call.unsupported("its queries, keys and values are packed into one tensor")
    if any(do.input(slot) is not None for slot in (8, 9)) or any(do.call.outputs[3:]):
        raise do.call.unsupported("it shares a buffer of past keys, or its scores are read")
    parts = [do.value(slot) for slot in range(3)]
    if do.input(3) is not None:
        parts = [do("Add", part, bias) for part, bias in zip(parts, _biases(do, parts, attrs))]
    heads = [part if part.rank == 4 else _heads(do, part, attrs) for part in parts]
    for k in (1, 2):
        if (past := do.input(5 + k)) is not None:
            heads[k] = do("Concat", past, heads[k], axis=2)
    result = _attended(do, heads, do.input(4), do.input(5), attrs)
    return [result, *heads[1:]][: max(1, len(do.call.outputs))]


def embed_layer_normalization(do: Steps, attrs: dict[str, Any]) -> Sequence[Value]:
    """Rows of words, positions and segments added and normalized; also how many words there are."""
    tables = [None if do.input(slot) is None else do.value(slot) for slot in range(2, 7)]
    return _embedded(do, tables, do.input(8), attrs)


def quantized_embed_layer_normalization(do: Steps, attrs: dict[str, Any]) -> Sequence[Value]:
    """The same of tables, and of numbers to normalize with, that are codes of 8 bits."""
    tables = [None if do.input(slot) is None else do.value(slot) for slot in range(2, 7)]
    floats = [
        None if codes is None else do("DequantizeLinear", codes, do.value(8 + k), do.input(13 + k))
        for k, codes in enumerate(tables)
    ]
    return _embedded(do, floats, None, attrs)[:2]


def _embedded(
    do: Steps, tables: Sequence[Value | None], positions: Value | None, attrs: dict[str, Any]
) -> Sequence[Value]:
    """Tables of words, positions and segments, and the two numbers a column to normalize with."""
    ids = do.value(0)
    words, places, segments, gamma, beta = tables
    if positions is not None:
        place = do("Gather", places, positions)
    else:
        length = do("Shape", ids, start=1, end=2)
        place = do("Slice", places, _ints(do, [0]), length, _ints(do, [0]))
    total = do("Add", do("Gather", words, ids), place)
    if do.input(1) is not None:
        total = do("Add", total, do("Gather", segments, do.value(1)))
    epsilon = attrs.get("epsilon", 1e-12)
    result = do("LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon)
    mask = do.input(7)
    if mask is None:
        mask = do("Sub", ids, ids)
    there = do("Cast", do("Equal", mask, do.number(1, mask)), to=dtype_to_onnx("int32"))
    count = do("ReduceSum", there, _ints(do, [1]), keepdims=0)
    return [result, count, total]


def simplified_layer_normalization(do: Steps, attrs: dict[str, Any]) -> Value:
    """Division by the root of the mean of squares (RMS)."""
    if any(do.call.outputs[1:]):
        raise do.call.unsupported("its deviations are read, which only training does")
    axis, rank = attrs.get("axis", -1), do.value(0).rank
    if rank is None:
        raise do.call.unsupported("it normalizes a tensor of unknown rank")
    axes = list(range(axis % max(rank, 1), rank))
    return _rms(do, do.value(0), do.value(1), attrs.get("epsilon", 1e-5), axes)


def skip_simplified_layer_normalization(do: Steps, attrs: dict[str, Any]) -> Sequence[Value]:
    """The same of a sum, which may be read too."""
    if any(do.call.outputs[1:3]):
        raise do.call.unsupported("its means are read, which only training does")
    total = do("Add", do.value(0), do.value(1))
    if do.input(3) is not None:
        total = do("Add", total, do.value(3))
    result = _rms(do, total, do.value(2), attrs.get("epsilon", 1e-12), [-1])
    return [result, result, result, total][: len(do.call.outputs)]


def _rms(do: Steps, x: Value, scale: Value, epsilon: float, axes: Sequence[int]) -> Value:
    mean = do("ReduceMean", do("Mul", x, x), _ints(do, axes))
    root = do("Sqrt", do("Add", mean, do.number(epsilon, x)))
    return do("Mul", do("Div", x, root), scale)


def _biases(do: Steps, parts: Sequence[Value], attrs: dict[str, Any]) -> Sequence[Value]:
    """One bias vector as those of queries, keys and values."""
    widths = [part.shape[-1] if part.shape else None for part in parts]
    if any(part.rank != 3 for part in parts) or not all(isinstance(w, int) for w in widths):
        raise do.call.unsupported("it adds a bias to queries, keys or values of unknown width")
    node = do.graph.insert(
        "Split", [do.value(3), _ints(do, widths)], {"axis": 0}, outputs=3, origin=do.call.origin
    )
    return node.outputs


def _heads(do: Steps, value: Value, attrs: dict[str, Any]) -> Value:
    """[samples, positions, heads * width] as [samples, heads, positions, width]."""
    return do(
        "Transpose",
        do("Reshape", value, _ints(do, [0, 0, _count(do, attrs), -1])),
        perm=[0, 2, 1, 3],
    )


def _count(do: Steps, attrs: dict[str, Any]) -> int:
    heads = attrs.get("num_heads", 0)
    if heads <= 0:
        raise do.call.invalid("num_heads must be above 0")
    return int(heads)


def _attended(
    do: Steps,
    heads: Sequence[Value],
    mask: Value | None,
    bias: Value | None,
    attrs: dict[str, Any],
) -> Value:
    """Values weighted by the softmax of scaled scores, as [samples, positions, heads * width]."""
    queries, keys, values = heads
    scores = do("MatMul", queries, do("Transpose", keys, perm=[0, 1, 3, 2]))
    scale = attrs.get("scale", 0.0)
    if scale:
        scores = do("Mul", scores, do.number(scale, scores))
    else:
        width = queries.shape[-1] if queries.shape else None
        if not isinstance(width, int):
            raise do.call.unsupported("its heads are of unknown width")
        scores = do("Mul", scores, do.number(width**-0.5, scores))
    if mask is not None:
        scores = do("Add", scores, _additive(do, mask, keys, scores, attrs))
    if bias is not None:
        scores = do("Add", scores, bias)
    if attrs.get("unidirectional"):
        scores = _causal(do, scores, queries, keys)
    mixed = do("MatMul", do("Softmax", scores, axis=-1), values)
    return do("Reshape", do("Transpose", mixed, perm=[0, 2, 1, 3]), _ints(do, [0, 0, -1]))


def _additive(do: Steps, mask: Value, keys: Value, scores: Value, attrs: dict[str, Any]) -> Value:
    """0 where `mask` lets a key be seen, `mask_filter_value` elsewhere; broadcasts to `scores`."""
    if mask.rank == 1:
        seen = _lengths(do, mask, keys)
        axes = [1, 2]
    elif mask.rank in (2, 3):
        seen = do("Greater", mask, do.number(0, mask))
        axes = [1, 2] if mask.rank == 2 else [1]
    else:
        raise do.call.unsupported("its mask has neither one, two nor three axes")
    hidden = do.number(attrs.get("mask_filter_value", -10000.0), scores)
    return do("Unsqueeze", do("Where", seen, do.number(0, scores), hidden), _ints(do, axes))


def _lengths(do: Steps, mask: Value, keys: Value) -> Value:
    """True at the positions before each sample's length; there are as many lengths as samples.

    A mask may also be twice as long: ends, then starts. Where only inputs tell, the sum of mask
    and scores takes the sizes to be one, and other inputs are refused.
    """
    sizes = [None if value.shape is None else value.shape[0] for value in (mask, keys)]
    if sizes[0] != sizes[1] and not isinstance(sizes[0], Sym):
        raise do.call.unsupported("its mask does not hold one length for each sample")
    length = do("Cast", do("Squeeze", do("Shape", keys, start=2, end=3)), to=_INT64)
    places = do("Range", _int(do, 0), length, _int(do, 1))
    ends = do("Unsqueeze", do("Cast", mask, to=_INT64), _ints(do, [1]))
    return do("Less", places, ends)


def _causal(do: Steps, scores: Value, queries: Value, keys: Value) -> Value:
    """Scores whose key comes after their query are the least number; queries are the last keys."""
    sizes = [do("Squeeze", do("Shape", v, start=2, end=3)) for v in (queries, keys)]
    own, other = (do("Range", _int(do, 0), size, _int(do, 1)) for size in sizes)
    last = do("Add", own, do("Sub", sizes[1], sizes[0]))
    seen = do("LessOrEqual", other, do("Unsqueeze", last, _ints(do, [1])))
    least = do.number(float(np.finfo(np.float32).min), scores)
    return do("Where", seen, scores, least)


def _ints(do: Steps, values: Sequence[Any]) -> Value:
    return do.graph.constant(np.array(values, np.int64))


def _int(do: Steps, value: int) -> Value:
    return do.graph.constant(np.array(value, np.int64))


ADAPTERS: dict[str, Adapter] = {
    "Attention": attention,
    "EmbedLayerNormalization": embed_layer_normalization,
    "MultiHeadAttention": multi_head_attention,
    "QAttention": quantized_attention,
    "QEmbedLayerNormalization": quantized_embed_layer_normalization,
    "SimplifiedLayerNormalization": simplified_layer_normalization,
    "SkipSimplifiedLayerNormalization": skip_simplified_layer_normalization,
}
