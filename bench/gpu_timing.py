"""How every engine is checked and timed, so that figures can be compared.

Three times of a call, in microseconds, each the median after a warm-up:

- `device`: on the GPU's clock, by CUDA events, inputs and outputs on the GPU, calls queued without
  waiting for one another;
- `call`: on the host's clock until the outputs are there, inputs and outputs on the GPU (`call_out`
  of ours: outputs in memory that is given);
- `end_to_end`: on the host's clock, from NumPy arrays to NumPy arrays.

Calls that take long are timed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

Arrays = Mapping[str, np.ndarray]
TOLERANCES = {
    "fp32": (1e-4, 1e-5),  # sums of a few hundred terms in another order
    "tf32x3": (1e-4, 1e-5),
    "tf32": (2e-2, 2e-3),  # operands of products keep 11 bits: 2^-11 each, and layers add up
    "fp16": (2e-2, 2e-3),
    "bf16": (0.1, 0.02),  # and here 8
}
SLOW = 0.25
"""Seconds; what takes longer is timed once."""
_FEWEST, _MOST = 5, 500  # calls


def worst_error(found: Arrays, expected: Arrays, precision: str) -> float:
    """The largest |found - expected| / (atol + rtol |expected|); 1 is fine.

    Of large outputs, only the first rows are expected.
    """
    rtol, atol = TOLERANCES[precision]
    worst = 0.0
    for name, wanted in expected.items():
        part = found[name][: len(wanted)] if wanted.ndim else found[name]
        if part.shape != wanted.shape or not np.isfinite(part).all():
            return float("inf")
        excess = np.abs(part - wanted) / (atol + rtol * np.abs(wanted))
        worst = max(worst, float(excess.max(initial=0.0)))
    return worst


def model_of(case: Path) -> Path:
    """The portable model, in ONNX: the compiler's rewrites are in it, its kernels are not."""
    return sorted(case.glob("*.gopt"))[0] / "model.onnx"


def batches_of(case: Path) -> list[int]:
    """The batch sizes that a case has inputs of."""
    return sorted(int(path.stem.rpartition("b")[2]) for path in case.glob("inputs_b*.npz"))


def arrays_of(case: Path, kind: str, batch: int) -> dict[str, np.ndarray]:
    """The `inputs` or `expected` outputs of a batch size."""
    with np.load(case / f"{kind}_b{batch}.npz") as arrays:
        return dict(arrays)


def repeated(inputs: Arrays, grow: Sequence[bool], times: int) -> dict[str, np.ndarray]:
    """The inputs of a batch that many times as large, which those that `grow` are repeated for."""
    return {
        name: np.concatenate([array] * times) if grows else array
        for (name, array), grows in zip(inputs.items(), grow, strict=True)
    }


def calls_in(seconds: float, call: Callable[[], object]) -> int:
    """How many calls fit into `seconds`, after one to warm up; some in any case."""
    call()
    start = time.perf_counter()
    call()
    each = time.perf_counter() - start
    return min(_MOST, max(_FEWEST, int(seconds / max(each, 1e-6)))) if each < SLOW else 1


def clocked(call: Callable[[], object], seconds: float) -> float:
    """The median time of a call by the clock, in microseconds."""
    times = []
    for _ in range(calls_in(seconds, call)):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times) * 1e6
