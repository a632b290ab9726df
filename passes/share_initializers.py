"""Equal constants become one."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from graphopt.ir.graph import Graph, Value
from graphopt.pipeline.base import Fidelity, Pass, PassContext

_SAMPLE = 64  # elements looked at before two large constants are compared in full
_CHUNK = 1 << 24  # bytes compared at a time, so that tables do not pile up in memory


class ShareInitializers(Pass):
    """Makes equal constants (same dtype, shape and bits) one value, which is then stored once.

    Needs nothing. Constants are told apart by dtype, shape and a few elements first, so that tables
    are read only where another one looks the same. Constants inside of subgraphs take part.
    Fidelity: exact.

    Before:
        (float[N,4] x) => (float[N,4] y) <float[4] a = {1, 2, 3, 4}, float[4] b = {1, 2, 3, 4}> {
            u = Add(x, a)
            y = Mul(u, b)
        }

    After:
        (float[N,4] x) => (float[N,4] y) <float[4] a = {1, 2, 3, 4}> {
            u = Add(x, a)
            y = Mul(u, a)
        }
    """

    name = "share-initializers"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        groups: dict[Hashable, list[Value]] = {}
        shared = 0
        for value in graph.constants():
            array = value.const
            assert array is not None
            same_looking = groups.setdefault(_looks(array), [])
            first = next((v for v in same_looking if _same_bits(v.const, array)), None)
            if first is None:
                same_looking.append(value)
                continue
            graph.replace_uses(value, first)
            shared += 1
        if shared:
            ctx.stats.hits["shared"] += shared
        return shared > 0


def _looks(array: np.ndarray) -> Hashable:
    step = max(1, array.size // _SAMPLE)
    sample = np.asarray(array.flat[::step])
    return (
        str(array.dtype),
        array.shape,
        repr(sample) if array.dtype == object else sample.tobytes(),
    )


def _same_bits(a: np.ndarray | None, b: np.ndarray) -> bool:
    if a is None or a is b:
        return a is b
    if b.dtype == object:
        return bool(a.tolist() == b.tolist())
    if _memory(a) == _memory(b):
        return True
    if not (a.flags.c_contiguous and b.flags.c_contiguous):
        return a.nbytes <= _CHUNK and a.tobytes() == b.tobytes()
    flat_a, flat_b = (x.reshape(-1).view(np.uint8) for x in (a, b))
    chunks = (slice(start, start + _CHUNK) for start in range(0, flat_a.size, _CHUNK))
    return all(np.array_equal(flat_a[chunk], flat_b[chunk]) for chunk in chunks)


def _memory(array: np.ndarray) -> tuple[int, tuple[int, ...]]:
    """Where the elements lie: views of the same memory need not be read to be compared."""
    return array.__array_interface__["data"][0], array.strides
