"""graphopt's own ops, and recurrent ones, as calls of PyTorch, registered when imported."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch_builder import Builder, Untranslatable, rule
from torch_ops import transposed

from graphopt.ir.graph import Node
from graphopt.ops import pair_products
from graphopt.ops.attention import Attention
from graphopt.ops.embedding_bag import EmbeddingBag


@rule("graphopt::DotInteraction")
def _dot_interaction(b: Builder, node: Node) -> fx.Node:
    features = b[node.inputs[0]]
    count = node.inputs[0].tensor.dims[1]
    left, right = (b.buffer(p) for p in np.divmod(np.asarray(node.attr("pairs")), count))
    products = b.call(torch.bmm, features, b.method("transpose", features, 1, 2))
    pairs = b.call(operator.getitem, products, (slice(None), left, right))
    if node.input(1) is None:
        return pairs
    return b.call(torch.cat, [b[node.inputs[1]], pairs], 1)


@rule("graphopt::PairProducts")
def _pair_products(b: Builder, node: Node) -> fx.Node:
    left, right, matrices = (b.buffer(np.asarray(side)) for side in pair_products.sides(node))

    def products(x: Tensor, i: Tensor, j: Tensor, *weights: Tensor) -> Tensor:
        chosen = x[:, i]
        if weights:
            chosen = torch.einsum("npd,pde->npe", chosen, weights[0][weights[1]])
        return chosen * x[:, j]

    rest = [] if node.input(1) is None else [b[node.inputs[1]], matrices]
    return b.call(products, b[node.inputs[0]], left, right, *rest)


@rule("graphopt::BiInteraction")
def _bi_interaction(b: Builder, node: Node) -> fx.Node:
    pooled = bool(node.attr("pooled", 0))

    def interaction(features: Tensor) -> Tensor:
        pairs = features.sum(1).square() - features.square().sum(1)
        return pairs.sum(1, keepdim=True) if pooled else pairs

    scale = node.attr("scale", 1.0)
    return b.call(torch.mul, b.call(interaction, b[node.inputs[0]]), scale)


@rule("graphopt::CompressedInteraction")
def _compressed_interaction(b: Builder, node: Node) -> fx.Node:
    relu = node.attr("activation", "none") == "relu"

    def interaction(left: Tensor, right: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        products = (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1, 2)
        sums = F.conv1d(products, weights.unsqueeze(2), bias)
        return F.relu(sums) if relu else sums

    left, right, _, bias = (b[value] for value in node.inputs)
    return b.call(interaction, left, right, transposed(b, node, 2, False), bias)


@rule("graphopt::CrossNetwork")
def _cross_network(b: Builder, node: Node) -> fx.Node:
    layers = node.inputs[1].tensor.dims[1]

    def network(x: Tensor, weights: Tensor, shifts: Tensor, bias: Tensor) -> Tensor:
        factors = x @ weights
        multiple = torch.ones_like(factors[:, :1])
        for k in range(layers):
            multiple = multiple * (1 + factors[:, k : k + 1]) + shifts[k]
        return multiple * x + bias

    return b.call(network, *(b[value] for value in node.inputs))


@rule("graphopt::TableRows")
def _table_rows(b: Builder, node: Node) -> fx.Node:
    return b.call(torch.add, b[node.inputs[0]], b[node.inputs[2]])


@rule("graphopt::EmbeddingBag")
def _embedding_bag(b: Builder, node: Node) -> fx.Node:
    bag = EmbeddingBag.of(node)
    if bag.empty != 0:
        raise Untranslatable("bags whose empty value is not 0")
    if node.input(3) is not None and (bag.mode != "sum" or bag.padding_idx is not None):
        raise Untranslatable("weighted bags that are no sums, or padded")
    table, ids = node.inputs[:2]
    options: dict[str, Any] = {"mode": bag.mode}
    if node.input(2) is not None:
        options |= {
            # Ids and offsets must be of one type.
            "offsets": b.method("to", b[node.inputs[2]], getattr(torch, ids.dtype)),
            "include_last_offset": bag.include_last_offset,
        }
    if node.input(3) is not None:
        options["per_sample_weights"] = b[node.inputs[3]]
    if bag.padding_idx is not None:
        options["padding_idx"] = bag.padding_idx
    return b.call(F.embedding_bag, b[ids], b[table], **options)


@rule("graphopt::EmbeddingBags")
def _embedding_bags(b: Builder, node: Node) -> fx.Node:
    """One bag of all fields: ids and offsets are moved to where their field begins."""
    mode, with_end = node.attr("mode", "sum"), bool(node.attr("include_last_offset", 0))
    table, _, starts, offsets, *fields = node.inputs
    if starts.const is None:
        raise Untranslatable("tables that begin at computed rows")
    firsts = starts.const.tolist()

    def bags(table: Tensor, offsets: Tensor, *fields: Tensor) -> Tensor:
        ids = torch.cat([field.long() + first for field, first in zip(fields, firsts)])
        before, moved = 0, []
        for field, own in zip(fields, offsets.long().unbind()):
            moved.append((own[:-1] if with_end else own) + before)
            before += field.size(0)
        pooled = F.embedding_bag(ids, table, torch.cat(moved), mode=mode)
        return pooled.view(len(fields), -1, table.size(1)).transpose(0, 1)

    return b.call(bags, b[table], b[offsets], *(b[field] for field in fields))


@rule("graphopt::Attention")
def _attention(b: Builder, node: Node) -> fx.Node:
    found = Attention.of(node)
    pointwise = {"relu": F.relu, "sigmoid": torch.sigmoid, "silu": F.silu}.get(found.activation)

    def heads(x: Tensor, first: int) -> Tensor:
        columns = x[..., first : first + found.width]
        return columns.unflatten(2, (found.heads, found.dim)).transpose(1, 2)

    def attention(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, factor: Tensor | None = None
    ) -> Tensor:
        q, k, v = map(heads, (q, k, v), found.columns)
        if pointwise is None:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=found.scale)
        else:
            scores = q @ k.transpose(2, 3) * found.scale
            shares = pointwise(scores if bias is None else scores + bias)
            mixed = (shares if factor is None else shares * factor) @ v
        return mixed.transpose(1, 2).flatten(2)

    return b.call(attention, *(None if value is None else b[value] for value in node.inputs))


def _gates(b: Builder, node: Node) -> list[fx.Node]:
    """Weights of a GRU as torch has them: reset before update, one matrix a side."""
    arrays = [node.const(k) for k in (1, 2, 3)]
    if any(array is None for array in arrays) or node.inputs[1].tensor.dims[0] != 1:
        raise Untranslatable("a GRU with computed weights, without bias, or of two directions")
    w, r, bias = arrays
    sides = [w[0], r[0], *np.split(bias[0], 2)]
    return [b.buffer(_reset_first(side)) for side in sides]


def _reset_first(stacked: np.ndarray) -> np.ndarray:
    update, reset, new = np.split(stacked, 3)
    return np.concatenate([reset, update, new])


@rule("GRU")
def _gru(b: Builder, node: Node) -> list[fx.Node]:
    plain = {"activations", "activation_alpha", "activation_beta", "clip"}.isdisjoint(node.attrs)
    if not node.attr("linear_before_reset", 0) or node.attr("layout", 0) or not plain:
        raise Untranslatable("a GRU that torch.nn.GRU is not")
    if node.attr("direction", "forward") != "forward":
        raise Untranslatable("a GRU that runs backwards")
    hidden = node.attr("hidden_size")

    def gru(x: Tensor, start: Tensor | None, lengths: Tensor | None, *weights: Tensor) -> Any:
        h = x.new_zeros(1, x.size(1), hidden) if start is None else start
        states, last = torch.gru(x, h, weights, True, 1, 0.0, False, False, False)
        if lengths is not None:  # later states are 0, the last is that of the last step
            steps = torch.arange(x.size(0), device=x.device).unsqueeze(1)
            states = states * (steps < lengths).unsqueeze(2)
            place = (lengths.long() - 1).view(1, -1, 1).expand(1, -1, hidden)
            last = states.gather(0, place)
        return states.unsqueeze(1), last

    optional = [b[v] if v is not None else None for v in (node.input(5), node.input(4))]
    both = b.call(gru, b[node.inputs[0]], *optional, *_gates(b, node))
    return [b.call(operator.getitem, both, k) for k in (0, 1)]


@rule("graphopt::GRU")
def _last_of_gru(b: Builder, node: Node) -> fx.Node:
    if not node.attr("linear_before_reset", 0):
        raise Untranslatable("a GRU that torch.nn.GRU is not")
    hidden = node.attr("hidden_size")

    def gru(x: Tensor, start: Tensor | None, *weights: Tensor) -> Any:
        h = x.new_zeros(1, x.size(1), hidden) if start is None else start
        return torch.gru(x, h, weights, True, 1, 0.0, False, False, False)[1]

    start = node.input(4)
    return b.call(gru, b[node.inputs[0]], None if start is None else b[start], *_gates(b, node))


@rule("graphopt::AttentionalGRU")
def _attentional_gru(b: Builder, node: Node) -> fx.Node:
    def gru(x: Tensor, h: Tensor, shares: Tensor, *weights: Tensor) -> Tensor:
        w, r, w_bias, r_bias = weights
        projected, state = F.linear(x, w, w_bias), h[0]
        for step, share in zip(projected.unbind(), shares.unbind()):
            xr, xz, xn = step.chunk(3, 1)
            hr, hz, hn = F.linear(state, r, r_bias).chunk(3, 1)
            new = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
            state = torch.lerp(state, new, share * torch.sigmoid(xz + hz))
        return state.unsqueeze(0)

    x, h, shares = (b[node.inputs[k]] for k in (0, 4, 5))
    return b.call(gru, x, h, shares, *_gates(b, node))
