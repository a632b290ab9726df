"""Asks memory for the next panel of weights while the one before is multiplied.

Weights that no cache holds come as slowly as a core has lines under way, and a block of 8 rows has
so many instructions between one line and the next that it waits for nearly each of them. The blocks
of one panel together ask for the next panel, each for as much as it has rows, so that memory and
multipliers work at the same time from few rows on.
"""

from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.panels import PANEL_BYTES, Emitted, GemmParams
from graphopt.targets.cpu.kernels.rows import CACHE_LINE
from graphopt.targets.kernels.script import inlined

LEAST_BYTES = 1 << 20  # smaller weights stay in the second-level cache
LEAST_ROWS = {True: 2, False: 16}
"""Fewer are done before the next lines come: for weights that are far away, and for others."""
FAR_BYTES = 16 << 20
"""More weights than that in a model are far away: of a third-level cache of 32 MiB half is theirs.
What is near, the CPU itself fetches in time for some rows (MLPerf's DLRM lost 10 % at 8)."""


def asks(k: int, panels: int, params: GemmParams, element_bytes: int) -> bool:
    """True if the kernel of a layer is to ask for its weights.

    CPUs with vectors of 16 lanes have second-level caches of 1 MiB or more. Vectors of 8 lanes
    take twice as long, and four of their panels are computed in turns, eight of which do not fit.
    """
    panel = k * params.width * element_bytes
    return params.lanes == 16 and panels * panel >= LEAST_BYTES and panel <= PANEL_BYTES


def asking(k: int, params: GemmParams, element_bytes: int, far: bool) -> tuple[Emitted, Emitted]:
    """For use in a kernel: `share(lines, first, height, rows)`, then `ask(lines, w, panel, kk)`.

    The first puts into `lines` which cache lines of each step of k are those of `height` rows from
    `first` on, of `rows`; the second asks for these lines of step `kk` of a panel.
    """
    width = params.width
    lines_of = -(-width * element_bytes // CACHE_LINE)

    @inlined
    def share(lines, first, height, rows):
        lines[0] = (first * lines_of + rows - 1) // rows
        lines[1] = ((first + height) * lines_of + rows - 1) // rows
        if rows < LEAST_ROWS[far]:
            lines[1] = lines[0]

    @inlined
    def ask(lines, w, panel, kk):
        for line in range(lines[1] - lines[0]):
            before = T.meta_var((lines[0] + line) * (CACHE_LINE // element_bytes))
            T.evaluate(
                T.call_llvm_intrin(
                    "void",
                    "llvm.prefetch",
                    w.access_ptr("r", offset=(panel * k + kk) * width + before),
                    T.int32(0),  # for reading
                    T.int32(2),  # into the second-level cache
                    T.int32(1),  # of the data cache
                )
            )

    return share, ask
