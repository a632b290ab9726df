"""What this machine can do at most: measured once and kept in the user's cache folder.

Operations are measured by loops that do nothing else, for each instruction for products that the
CPU has; bandwidth by copies of several sizes, each of which a cache of its own holds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.ir.atomic import replacing
from graphopt.latency import Call, interleaved
from graphopt.machine import cpu_name, host_features, tiles_allowed

SIZES = (32 << 10, 512 << 10, 8 << 20, 256 << 20)
"""Bytes moved by the copies that are timed: what the caches hold, and more than that."""


@dataclass(frozen=True)
class Roofline:
    """Peaks of one core.

    Attributes:
        flops: float32 operations a second.
        bytes: bytes a second, read and written, for each of `SIZES`.
        products: operations a second by instructions for fewer bits, as `analysis.cost` names them.
    """

    flops: float
    bytes: tuple[float, ...]
    products: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, operations: Mapping[str, float], moved: float) -> float:
        """The least time for operations by each instruction ("" is float32's) and bytes.

        All that a cache holds is taken to be in it.

        Raises:
            KeyError: this CPU lacks an instruction.
        """
        rates = {"": self.flops, **self.products}
        multiplying = sum(count / rates[name] for name, count in operations.items() if count)
        rate = next((r for size, r in zip(SIZES, self.bytes) if moved <= size), self.bytes[-1])
        return max(multiplying, moved / rate)


def roofline() -> Roofline:
    """The peaks of this machine, from the cache or else measured, which takes seconds."""
    path, machine = cache_folder() / "roofline.json", _machine()
    known: Any = {}
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text())
    with suppress(KeyError, TypeError):
        entry = known[machine]
        return Roofline(entry["flops"], tuple(entry["bytes"]), dict(entry["products"]))
    found = measure()
    with suppress(OSError):  # a home that cannot be written to is no reason to fail
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            others = known if isinstance(known, dict) else {}
            entries = {**others, machine: dataclasses.asdict(found)}
            temporary.write_text(json.dumps(entries, indent=2) + "\n")
    return found


def _machine() -> str:
    """Its CPU, and what this process may use of it: hypervisors show many CPUs by one name."""
    sets = [*sorted(host_features()), f"tiles: {tiles_allowed()}"]
    return f"{cpu_name()} {zlib.crc32(' '.join(sets).encode()):08x}"


def cache_folder() -> Path:
    """Where graphopt keeps what it can measure again."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "graphopt"


def measure(seconds: float = 0.3) -> Roofline:
    """Measure multiply-adds in registers, and copies in NumPy; the fastest call of each counts."""
    from graphopt.targets.cpu.peak import products

    multiply = products()
    calls = {name: call for name, (call, _) in multiply.items()}
    calls |= {str(size): _copy(size) for size in SIZES}
    fastest = {name: taken.least / 1e6 for name, taken in interleaved(calls, seconds).items()}
    rates = [size / fastest[str(size)] for size in SIZES]
    # The smallest copy takes no longer than calling it does; what is smaller is not slower.
    rising = (max(rates[k:]) for k in range(len(rates)))
    peaks = {name: operations / fastest[name] for name, (_, operations) in multiply.items()}
    return Roofline(peaks.pop(""), tuple(rising), peaks)


def _copy(moved: int) -> Call:
    source = np.ones(moved // 8, np.float32)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)
