"""What this machine can do at most: measured once and kept in the user's cache folder."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.ir.atomic import replacing
from graphopt.latency import Call, interleaved
from graphopt.machine import cpu_name

SIZES = (32 << 10, 512 << 10, 8 << 20, 256 << 20)
"""Bytes moved by the copies that are timed: what the caches hold, and more than that."""


@dataclass(frozen=True)
class Roofline:
    """Peaks of one core.

    Attributes:
        flops: float32 operations a second.
        bytes: bytes a second, read and written, for each of `SIZES`.
    """

    flops: float
    bytes: tuple[float, ...]

    def seconds(self, flops: float, moved: float) -> float:
        """The least time for so many operations and bytes, all that fits being in a cache."""
        rate = next((r for size, r in zip(SIZES, self.bytes) if moved <= size), self.bytes[-1])
        return max(flops / self.flops, moved / rate)


def roofline() -> Roofline:
    """The peaks of this machine, from the cache or else measured, which takes seconds."""
    path = cache_folder() / "roofline.json"
    known: Any = {}
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text())
    with suppress(KeyError, TypeError):
        entry = known[cpu_name()]
        return Roofline(entry["flops"], tuple(entry["bytes"]))
    found = measure()
    with suppress(OSError):  # a home that cannot be written to is no reason to fail
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            others = known if isinstance(known, dict) else {}
            entries = {**others, cpu_name(): dataclasses.asdict(found)}
            temporary.write_text(json.dumps(entries, indent=2) + "\n")
    return found


def cache_folder() -> Path:
    """Where graphopt keeps what it can measure again."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "graphopt"


def measure(seconds: float = 0.3) -> Roofline:
    """Measure our matrix product and copies in NumPy; the fastest call of each counts."""
    from graphopt.targets.cpu.peak import product

    multiply, flops = product()
    calls = {"product": multiply} | {str(size): _copy(size) for size in SIZES}
    fastest = {name: taken.least / 1e6 for name, taken in interleaved(calls, seconds).items()}
    rates = [size / fastest[str(size)] for size in SIZES]
    # The smallest copy takes no longer than calling it does; what is smaller is not slower.
    rising = (max(rates[k:]) for k in range(len(rates)))
    return Roofline(flops / fastest["product"], tuple(rising))


def _copy(moved: int) -> Call:
    source = np.ones(moved // 8, np.float32)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)
