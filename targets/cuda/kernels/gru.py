"""The recurrence of a GRU on a GPU: a block per sample and direction, a thread per hidden unit.

Buffers are laid out as for the CPU's `recurrent` kernels. The state lies in shared memory; a warp
reads neighbouring columns of the weights, which all blocks find in the second-level cache.
"""

from functools import cache

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.kernels.inlining import inlined
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.recurrent_cell import Buffers, Cell

MAX_HIDDEN = 1024  # threads of a block


@inlined
def _step(cell, io, h, gated, acc, d, s, u, t):
    """One step of one unit: h[u] becomes the new state, where the sequence is not over."""
    hidden = T.meta_var(cell.hidden)
    start = T.meta_var(d * 3 * hidden + u)
    acc[0] = io.gates[t, s, start]
    acc[1] = io.gates[t, s, start + hidden]
    acc[2] = io.extra[d, u] if cell.option else io.gates[t, s, start + 2 * hidden]
    for k in range(hidden):
        acc[0] = acc[0] + h[k] * io.recurrence[d, k, u]
        acc[1] = acc[1] + h[k] * io.recurrence[d, k, hidden + u]
        if cell.option:
            acc[2] = acc[2] + h[k] * io.recurrence[d, k, 2 * hidden + u]
    acc[0] = cell.activate(0, 0, acc[0])
    acc[1] = cell.activate(0, 0, acc[1])
    if cell.has("attention"):
        acc[0] = T.float32(1) - io.attention[t, s] * acc[0]
    if cell.option:
        acc[2] = io.gates[t, s, start + 2 * hidden] + acc[1] * acc[2]
    else:
        gated[u] = acc[1] * h[u]
        for k in range(hidden):
            acc[2] = acc[2] + gated[k] * io.recurrence[d, k, 2 * hidden + u]
    acc[2] = cell.activate(0, 1, acc[2])
    acc[3] = (T.float32(1) - acc[0]) * acc[2] + acc[0] * h[u]
    alive = T.meta_var(cell.alive(io, s, t))
    io.y[t, d, s, u] = T.Select(alive, acc[3], T.float32(0))
    acc[3] = T.Select(alive, acc[3], h[u])
    T.tvm_storage_sync("shared")
    h[u] = acc[3]


@cache
def gru(cell: Cell) -> PrimFunc:
    """Kernel (gates, recurrence, hidden_bias?, sequence_lens?, initial_h?, attention?) -> y, y_h.

    Both directions have the same activations.

    Raises:
        ValueError: there are more hidden units than a block has threads, or activations differ.
    """
    per_direction = len(cell.activations) // cell.directions
    if cell.hidden > MAX_HIDDEN or cell.activations != cell.activations[:per_direction] * (
        cell.directions
    ):
        raise ValueError(f"more than {MAX_HIDDEN} hidden units, or activations differ by direction")
    steps, samples = tirx.Var("steps", "int64"), tirx.Var("samples", "int64")
    d, h = cell.directions, cell.hidden

    @T.prim_func(private=True, s_tir=True)
    def recurrent(
        gates: T.handle,
        recurrence: T.handle,
        extra: T.handle,
        sequence_lens: T.handle,
        initial_h: T.handle,
        attention: T.handle,
        y: T.handle,
        y_h: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        x = T.match_buffer(gates, (steps, samples, d * 3 * h), "float32")
        r = T.match_buffer(recurrence, (d, h, 3 * h), "float32")
        more = T.match_buffer(extra, (d, h), "float32")
        lens = T.match_buffer(sequence_lens, (samples,), "int32")
        h_0 = T.match_buffer(initial_h, (d, samples, h), "float32")
        scale = T.match_buffer(attention, (steps, samples), "float32")
        out = T.match_buffer(y, (steps, d, samples, h), "float32")
        h_n = T.match_buffer(y_h, (d, samples, h), "float32")
        io = T.meta_var(Buffers(x, r, more, lens, h_0, None, scale, out, h_n, None, steps, samples))
        for s in T.thread_binding(samples, thread="blockIdx.x"):
            for side in T.thread_binding(d, thread="blockIdx.y"):
                for u in T.thread_binding(h, thread="threadIdx.x"):
                    state = T.alloc_buffer((h,), "float32", scope="shared")
                    gated = T.alloc_buffer((h,), "float32", scope="shared")
                    acc = T.alloc_buffer((4,), "float32", scope="local")
                    state[u] = h_0[side, s, u] if cell.has("initial_h") else T.float32(0)
                    for step in range(steps):
                        t = T.meta_var(
                            T.Select(side == 1, steps - 1 - step, step)
                            if d == 2
                            else cell.time(step, steps, 0)
                        )
                        _step(cell, io, state, gated, acc, side, s, u, t)
                    h_n[side, s, u] = state[u]

    names = {"extra": "more", "sequence_lens": "lens", "initial_h": "h_0", "attention": "scale"}
    return without_parameters(recurrent, *(v for k, v in names.items() if not cell.has(k)))
