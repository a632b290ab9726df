"""Scaled dot-product attention over sequences of known length, by tiles of AMX.

For each head queries, keys and values are rounded once. Keys are turned around, so that the words
of 16 keys lie side by side; words of values hold those of two neighbouring keys. Scores and their
shares are float32, and shares are rounded for the second product.
"""

from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.ir.dims import Dim
from graphopt.targets.cpu.kernels.amx import TILE, configuring
from graphopt.targets.cpu.kernels.attention_shares import Axes, Head, sharing, sizes_of
from graphopt.targets.cpu.kernels.bfloat16 import PAIR, Words
from graphopt.targets.cpu.kernels.folding import transposing
from graphopt.targets.cpu.kernels.panels import Emitted, GemmParams
from graphopt.targets.cpu.kernels.tile_products import SUMS, multiplying, tile_params
from graphopt.targets.kernels import script
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

_LEAST = 16  # queries, and elements of each
_ROWS = 4  # queries whose shares are computed at the same time
_FLOATS = PAIR * TILE  # of a row of a tile


def suits(queries: Dim, keys: Dim, dim: int) -> bool:
    """True if this is faster than `attention`, for so many elements of a query."""
    if not isinstance(queries, int) or not isinstance(keys, int):
        return False
    return min(queries, dim) >= _LEAST


@cache
def attention_tiles(
    heads: int,
    dim: int,
    scale: float,
    columns: tuple[int, int, int],
    widths: tuple[int, int, int],
    bias: Axes | None,
    queries: int,
    keys: int,
    words: Words,
    guarded: bool = False,
    activation: str | None = None,
    factor: Axes | None = None,
) -> PrimFunc:
    """Kernel (q[b, t, widths[0]], k[b, s, widths[1]], v[b, s, …], bias?, factor?) -> y[b, t, …].

    As `attention`, with queries, keys, values and shares rounded to bfloat16 before they are
    multiplied; all else is float32. `words` has tiles.
    """
    align, samples, t, s = element_bytes("float32"), tirx.Var("samples", "int64"), queries, keys
    deep, long, wide = words.depth(dim), tile_params(s), tile_params(dim)
    depth = words.depth(s)
    room = max(depth * PAIR, long.panels(s) * long.width) // TILE
    chosen = None if activation is None else Activation(activation)
    head = Head(dim, s, TILE, guarded, chosen, room)
    optional = {"added": bias, "factors": factor}
    sizes = {name: sizes_of(axes, (samples, heads, t, s)) for name, axes in optional.items()}
    assert words.tiles is not None
    begin, end = configuring(words.tiles, deep)
    padded = -(-s // TILE) * TILE
    round_rows = _rounding(dim, words)
    turn_keys, pair_values = _turning(padded, deep, long), _pairing(s, dim, wide, words)
    height = TILE if t <= TILE else 2 * TILE
    attend = _attending(head, t, scale, long, wide, words, sharing(head, bias, factor, t))

    @script.prim_func(private=True, s_tir=True)
    def attention_tiles(
        q_: T.handle, k_: T.handle, v_: T.handle, bias_: T.handle, factor_: T.handle, out_: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        q = T.match_buffer(q_, (samples, t, widths[0]), "float32", align=align)
        k = T.match_buffer(k_, (samples, s, widths[1]), "float32", align=align)
        v = T.match_buffer(v_, (samples, s, widths[2]), "float32", align=align)
        added = T.match_buffer(bias_, sizes["added"], "float32", align=align)
        factors = T.match_buffer(factor_, sizes["factors"], "float32", align=align)
        y = T.match_buffer(out_, (samples, t, heads * dim), "float32", align=align)
        with T.attr(0, "pragma_import_llvm", words.llvm):
            asked = T.alloc_buffer((max(t, height), deep), "int32")
            known = T.alloc_buffer((padded, deep), "int32")
            turned = T.alloc_buffer((long.panels(s), deep, long.width), "int32")
            values = T.alloc_buffer((wide.panels(dim), depth, wide.width), "int32")
            score = T.alloc_buffer((height * room * TILE,), "float32")
            shares = T.alloc_buffer((height, depth), "int32")
            total = T.alloc_buffer((height,), "float32")
            _clear(asked, height - t, t, deep)
            _clear(known, padded - s, s, deep)
            for panel in range(wide.panels(dim)):
                for row in range(depth - -(-s // PAIR)):
                    for lane in range(wide.width):
                        values[panel, -(-s // PAIR) + row, lane] = 0
            for place in range(height * room * TILE):
                score[place] = T.float32(0)
            begin(T.int64(TILE))
            for b in range(samples):
                for h in range(heads):
                    round_rows(q, b, t, columns[0] + h * dim, asked)
                    round_rows(k, b, s, columns[1] + h * dim, known)
                    turn_keys(known, turned)
                    pair_values(v, b, columns[2] + h * dim, values)
                    tensors = T.meta_var(
                        (asked, turned, values, (added, factors), y, score, shares, total, b, h)
                    )
                    for block in range((t + height - 1) // height):
                        attend(tensors, T.min(block * height, max(t - height, 0)), block * height)
            end(T.int64(TILE))

    return without_parameters(attention_tiles, *(n for n, axes in optional.items() if axes is None))


@inlined
def _clear(matrix, rows, first, columns):
    """Rows from `first` on become 0."""
    for row in range(rows):
        for column in range(columns):
            matrix[first + row, column] = 0


def _rounding(dim: int, words: Words) -> Emitted:
    """For use in a kernel: `round_rows(x, b, rows, start, out)`.

    out[:rows] become the words of x[b, :rows, start:start + dim]; beyond `dim` they are 0.
    """
    whole, rest = divmod(dim, _FLOATS)

    @inlined
    def round_rows(x, b, rows, start, out):
        some = T.alloc_buffer((_FLOATS,), "float32")
        for lane in range(_FLOATS):
            some[lane] = T.float32(0)
        for row in range(rows):
            for part in T.unroll(whole):
                for half in T.unroll(PAIR):
                    at = T.meta_var(part * _FLOATS + half * TILE)
                    out[row, T.ramp(at // PAIR, 1, TILE // PAIR)] = words.rounded(
                        x[b, row, T.ramp(start + at, 1, TILE)]
                    )
            if rest > 0:
                for lane in T.vectorized(rest):
                    some[lane] = x[b, row, start + whole * _FLOATS + lane]
                for half in T.unroll(PAIR):
                    at = T.meta_var(whole * _FLOATS + half * TILE)
                    out[row, T.ramp(at // PAIR, 1, TILE // PAIR)] = words.rounded(
                        some[T.ramp(half * TILE, 1, TILE)]
                    )

    return round_rows


def _turning(padded: int, deep: int, long: GemmParams) -> Emitted:
    """For use in a kernel: `turn_keys(known, turned)` packs keys as `multiplying` takes weights."""
    transpose, vectors = transposing(TILE, "int32"), long.vectors

    @inlined
    def turn_keys(known, turned):
        for key in range(padded // TILE):
            for part in range(deep // TILE):
                tile = T.alloc_buffer((TILE * TILE,), "int32")
                for r in T.unroll(TILE):
                    tile[T.ramp(r * TILE, 1, TILE)] = known[
                        key * TILE + r, T.ramp(part * TILE, 1, TILE)
                    ]
                transpose(tile)
                for r in T.unroll(TILE):
                    turned[
                        key // vectors,
                        part * TILE + r,
                        T.ramp(key % vectors * TILE, 1, TILE),
                    ] = tile[T.ramp(r * TILE, 1, TILE)]

    return turn_keys


def _pairing(s: int, dim: int, wide: GemmParams, words: Words) -> Emitted:
    """For use in a kernel: `pair_values(v, b, start, values)`.

    The last of an odd number is beside zeros.
    """
    vectors = wide.vectors

    @inlined
    def load(vector, v, b, key, column, lanes):
        for lane in T.vectorized(lanes):
            vector[lane] = v[b, key, column + lane]

    @inlined
    def pair(low, high, v, b, start, values, row, part, lanes, alone):
        load(low, v, b, PAIR * row, start + part * TILE, lanes)
        if not alone:
            load(high, v, b, PAIR * row + 1, start + part * TILE, lanes)
        values[part // vectors, row, T.ramp(part % vectors * TILE, 1, TILE)] = words.paired(
            low[T.ramp(0, 1, TILE)],
            T.Broadcast(T.float32(0), TILE) if alone else high[T.ramp(0, 1, TILE)],
        )

    @inlined
    def pair_row(v, b, start, values, row, alone):
        low = T.alloc_buffer((TILE,), "float32")
        high = T.alloc_buffer((TILE,), "float32")
        for part in T.unroll(dim // TILE):
            pair(low, high, v, b, start, values, row, part, TILE, alone)
        if dim % TILE > 0:
            for lane in range(TILE):
                low[lane] = T.float32(0)
                high[lane] = T.float32(0)
            pair(low, high, v, b, start, values, row, dim // TILE, dim % TILE, alone)

    @inlined
    def pair_values(v, b, start, values):
        for row in range(s // PAIR):
            pair_row(v, b, start, values, row, False)
        if s % PAIR > 0:
            pair_row(v, b, start, values, s // PAIR, True)

    return pair_values


def _attending(
    head: Head,
    t: int,
    scale: float,
    long: GemmParams,
    wide: GemmParams,
    words: Words,
    share: Emitted,
) -> Emitted:
    """For use in a kernel: `attend(tensors, first, begin)` computes a block of queries of a head.

    It has as many as two tiles, or one if one holds all queries; those before `begin` are there
    already. Shares are computed for whole groups: of queries that are there, or that do not exist.
    """
    dim, s, depth, stride = head.dim, head.keys, words.depth(head.keys), head.stride
    height = TILE if t <= TILE else 2 * TILE
    end = min(t, height)
    assert words.tiles is not None

    @inlined
    def scores(score, sums, panel):
        for r in range(height):
            for c in T.unroll(long.vectors):
                block = T.meta_var(panel * long.vectors + c)
                if block < head.blocks:
                    for lane in T.vectorized(TILE):
                        score[r * stride + block * TILE + lane] = sums[
                            r * long.width + c * TILE + lane
                        ] * T.float32(scale)

    mixed = _storing(head, wide, end)
    score_keys = multiplying(words.tiles, "tdpbf16ps", words.depth(dim), long.vectors)
    mix_values = multiplying(words.tiles, "tdpbf16ps", depth, wide.vectors)

    @inlined
    def finish(score, shares, total, row):
        """Shares as words, and what sums of theirs are multiplied by."""
        for part in T.unroll(PAIR * depth // TILE):
            shares[row, T.ramp(part * TILE // PAIR, 1, TILE // PAIR)] = words.rounded(
                score[T.ramp(row * stride + part * TILE, 1, TILE)]
            )
        if head.activation is None:
            total[row] = T.float32(1) / total[row]

    @inlined
    def attend(tensors, first, begin):
        asked, turned, values, others, y, score, shares, total, b, h = T.meta_var(tensors)
        sums = T.alloc_buffer((SUMS,), "float32", scope="local")
        for panel in range(long.panels(s)):
            score_keys((asked, first, turned), panel, sums, 0, height)
            scores(score, sums, panel)
        for group in range((begin - first) // _ROWS, (end + _ROWS - 1) // _ROWS):
            at = T.meta_var(group * _ROWS)
            share(score, total, others, b, h, first + at, at, _ROWS)
            for m in T.unroll(_ROWS):
                finish(score, shares, total, at + m)
        for panel in range(wide.panels(dim)):
            mix_values((shares, 0, values), panel, sums, 0, height)
            mixed(y, sums, total, b, h, first, panel, begin - first)

    return attend


def _storing(head: Head, wide: GemmParams, end: int) -> Emitted:
    """For use in a kernel: `mixed(y, sums, total, b, h, first, panel, begin)` stores a panel of y.

    Rows `begin` to `end` of the sums are those of query first + begin of the head, and so on.
    """
    dim = head.dim

    def share_of(value: Any, part: Any) -> Any:
        if head.activation is not None:
            return value
        if not head.guarded:
            return value * part
        return T.Select(part > T.float32(0), value * part, T.float32(0))

    @inlined
    def store(y, b, row, start, sums, at, part, lanes):
        for lane in T.vectorized(lanes):
            y[b, row, start + lane] = share_of(sums[at + lane], part)

    @inlined
    def mixed(y, sums, total, b, h, first, panel, begin):
        for r in range(begin, end):
            for c in T.unroll(wide.vectors):
                at = T.meta_var(panel * wide.width + c * TILE)
                where = T.meta_var(r * wide.width + c * TILE)
                place = T.meta_var((y, b, first + r, h * dim + at, sums, where))
                if dim - at >= TILE:
                    store(*place, total[r], TILE)
                elif dim % TILE > 0 and dim - at > 0:
                    store(*place, total[r], dim % TILE)

    return mixed
