"""Scaled dot-product attention over short sequences, all heads of a sample in one go.

For each head the keys are turned around once, so that the scores of a vector of keys are computed
together; scores, their shares and the weighted sum of values then stay in the nearest cache.
"""

from functools import cache

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.attention_shares import Axes, Head, sharing, sizes_of
from graphopt.targets.cpu.kernels.folding import transposing
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.cpu.kernels.tiles import Tiles
from graphopt.targets.kernels import script
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

_ROWS = 4  # queries that share each load of a key
_SUMS = 8  # vectors of sums that keep two units for fused multiply-adds busy


@cache
def attention(
    heads: int,
    dim: int,
    scale: float,
    columns: tuple[int, int, int],
    widths: tuple[int, int, int],
    bias: Axes | None,
    queries: int | None,
    keys: int | None,
    lanes: int,
    guarded: bool = False,
    activation: str | None = None,
    factor: Axes | None = None,
) -> PrimFunc:
    """Kernel (q[b, t, widths[0]], k[b, s, widths[1]], v[b, s, …], bias?, factor?) -> y[b, t, …].

    y[b, t, heads * dim] = softmax(scale * q k^T + bias) v for each head, whose columns in q, k and
    v begin at `columns`. float32. NaN stays NaN; all scores -inf give NaN, and no keys 0.
    If `guarded`, all of these give 0. With an `activation` y is activation(scale * q k^T + bias) *
    factor v instead.

    Args:
        bias: which axes the bias has, and `factor` likewise; None for none.
        queries: t, symbolic if None, and `keys` is s likewise; `b` is symbolic.
        lanes: float32 elements in a vector register.
    """
    align, samples = element_bytes("float32"), tirx.Var("samples", "int64")
    t = tirx.Var("queries", "int64") if queries is None else queries
    s = tirx.Var("keys", "int64") if keys is None else keys
    head = Head(dim, s, lanes, guarded, None if activation is None else Activation(activation))
    optional = {"added": bias, "factors": factor}
    sizes = {name: sizes_of(axes, (samples, heads, t, s)) for name, axes in optional.items()}
    turn_keys, blocks = _turning(head, columns[1]), head.blocks
    attend = _attending(head, scale, columns, bias, factor)

    @script.prim_func(private=True, s_tir=True)
    def attention(
        q_: T.handle, k_: T.handle, v_: T.handle, bias_: T.handle, factor_: T.handle, out_: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        q = T.match_buffer(q_, (samples, t, widths[0]), "float32", align=align)
        k = T.match_buffer(k_, (samples, s, widths[1]), "float32", align=align)
        v = T.match_buffer(v_, (samples, s, widths[2]), "float32", align=align)
        added = T.match_buffer(bias_, sizes["added"], "float32", align=align)
        factors = T.match_buffer(factor_, sizes["factors"], "float32", align=align)
        y = T.match_buffer(out_, (samples, t, heads * dim), "float32", align=align)
        turned = T.alloc_buffer((dim * blocks * lanes,), "float32")
        score = T.alloc_buffer((_ROWS * blocks * lanes,), "float32")
        total = T.alloc_buffer((_ROWS,), "float32", scope="local")
        for b in range(samples):
            for h in range(heads):
                tensors = T.meta_var((q, turned, v, added, factors, y, score, total))
                turn_keys(turned, k, b, h)
                for i in range(t // _ROWS):
                    attend(tensors, b, h, i * _ROWS, _ROWS)
                for i in range(t % _ROWS):
                    attend(tensors, b, h, t - 1 - i, 1)

    return without_parameters(attention, *(n for n, axes in optional.items() if axes is None))


def _turning(head: Head, column: int) -> Emitted:
    """For use in a kernel: `turn_keys(turned, k, b, h)` puts the keys of a head side by side."""
    dim, s, padded = head.dim, head.keys, head.blocks * head.lanes
    width = min(head.lanes, 1 << (dim.bit_length() - 1))
    transpose, whole = transposing(width), dim // width * width

    @inlined
    def turn_block(turned, k, b, row, start, d):
        """`width` elements of as many keys, from `d` on."""
        block = T.alloc_buffer((width * width,), "float32")
        for r in T.unroll(width):
            block[T.ramp(r * width, 1, width)] = k[b, row + r, T.ramp(start + d, 1, width)]
        transpose(block)
        for r in T.unroll(width):
            turned[T.ramp((d + r) * padded + row, 1, width)] = block[T.ramp(r * width, 1, width)]

    @inlined
    def turn(turned, k, b, row, start, d):
        turned[d * padded + row] = k[b, row, start + d]

    @inlined
    def turn_keys(turned, k, b, h):
        start = T.meta_var(column + h * dim)
        for group in range(s // width):
            for part in range(dim // width):
                turn_block(turned, k, b, group * width, start, part * width)
            for r in range(width):
                for d in range(dim - whole):
                    turn(turned, k, b, group * width + r, start, whole + d)
        for row in range(s % width):
            for d in range(dim):
                turn(turned, k, b, s - s % width + row, start, d)
        for d in range(dim):
            for row in range(padded - s):
                turned[d * padded + s + row] = T.float32(0)

    return turn_keys


def _attending(
    head: Head, scale: float, columns: tuple[int, int, int], bias: Axes | None, factor: Axes | None
) -> Emitted:
    """For use in a kernel: `attend(tensors, b, h, first, rows)` computes rows of y for a head."""
    scores, mix = _scoring(head, scale, columns[0]), _mixing(head, columns[2])
    share = sharing(head, bias, factor)

    @inlined
    def attend(tensors, b, h, first, rows):
        q, turned, v, added, factors, y, score, total = T.meta_var(tensors)
        scores(score, q, turned, b, h, first, rows)
        share(score, total, (added, factors), b, h, first, 0, rows)
        mix(y, score, total, v, b, h, first, rows)

    return attend


def _scoring(head: Head, scale: float, column: int) -> Emitted:
    """For use in a kernel: `scores(score, q, turned, b, h, first, rows)` multiplies with keys."""
    dim, lanes, blocks = head.dim, head.lanes, head.blocks

    @inlined
    def multiply(score, q, turned, b, h, first, rows, block, side):
        """Queries times `side` vectors of keys from vector `block` on."""
        acc = T.alloc_buffer((rows * side * lanes,), "float32", scope="local")
        for part in T.unroll(rows * side):
            acc[T.ramp(part * lanes, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
        for d in range(dim):
            for m in T.unroll(rows):
                for n in T.unroll(side):
                    acc[T.ramp((m * side + n) * lanes, 1, lanes)] = (
                        acc[T.ramp((m * side + n) * lanes, 1, lanes)]
                        + T.Broadcast(q[b, first + m, column + h * dim + d], lanes)
                        * turned[T.ramp((d * blocks + block + n) * lanes, 1, lanes)]
                    )
        for m in T.unroll(rows):
            for n in T.unroll(side):
                score[T.ramp((m * blocks + block + n) * lanes, 1, lanes)] = acc[
                    T.ramp((m * side + n) * lanes, 1, lanes)
                ] * T.Broadcast(T.float32(scale), lanes)

    @inlined
    def scores(score, q, turned, b, h, first, rows):
        side = T.meta_var(_SUMS // rows)
        for i in range(blocks // side):
            multiply(score, q, turned, b, h, first, rows, i * side, side)
        if not isinstance(blocks, int):
            for i in range(blocks % side):
                multiply(score, q, turned, b, h, first, rows, blocks - 1 - i, 1)
        elif blocks % side > 0:
            multiply(score, q, turned, b, h, first, rows, blocks - blocks % side, blocks % side)

    return scores


def _mixing(head: Head, first_column: int) -> Emitted:
    """For use in a kernel: `mix(y, score, total, v, b, h, first, rows)` adds up weighted values."""
    dim, lanes, blocks, s = head.dim, head.lanes, head.blocks, head.keys

    def share_of(value, total):
        if head.activation is not None:
            return value
        part = value / total
        return T.Select(total > T.float32(0), part, T.float32(0)) if head.guarded else part

    @inlined
    def mix(y, score, total, v, b, h, first, rows):
        tiles = T.meta_var(Tiles(dim, lanes, 4 if lanes == 16 else _SUMS // rows))
        width = T.meta_var(tiles.vectors * tiles.lanes)
        acc = T.alloc_buffer((rows * width,), "float32", scope="local")
        for tile in range(tiles.count):
            for m in T.unroll(rows):
                for n in T.unroll(tiles.vectors):
                    for lane in T.vectorized(tiles.lanes):
                        acc[m * width + n * tiles.lanes + lane] = T.float32(0)
            for key in range(s):
                for n in T.unroll(tiles.vectors):
                    for m in T.unroll(rows):
                        for lane in T.vectorized(tiles.lanes):
                            acc[m * width + n * tiles.lanes + lane] = (
                                acc[m * width + n * tiles.lanes + lane]
                                + score[m * blocks * lanes + key]
                                * v[b, key, first_column + h * dim + tiles.column(tile, n) + lane]
                            )
            for m in T.unroll(rows):
                for n in T.unroll(tiles.vectors):
                    for lane in T.vectorized(tiles.lanes):
                        y[b, first + m, h * dim + tiles.column(tile, n) + lane] = share_of(
                            acc[m * width + n * tiles.lanes + lane], total[m]
                        )

    return mix
