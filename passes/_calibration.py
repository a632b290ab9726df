"""Ranges of 8-bit codes for floats that were seen on calibration data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts on first use

LEVELS = 255
_TAILS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)  # shares of the floats that clipping may cut off
_ELEMENTS = 1 << 20  # of calibration data that a range is chosen on
_BINS = 2048


@dataclass(frozen=True)
class CodeRange:
    """How uint8 codes stand for floats: (code - zero) * scale.

    Attributes:
        error: root mean square of what is lost, relative to that of the floats.
    """

    scale: np.ndarray
    zero: np.ndarray
    error: float

    @staticmethod
    def of(batches: list[np.ndarray]) -> list[CodeRange]:
        """Ranges for some floats, those that lose least first. They always hold 0.

        By least squared error, by least loss of information (the divergence of the rounded from
        the true distribution, as in Migacz, "8-bit Inference with TensorRT", 2017), up to the
        percentile 99.99 on either side, and from the least to the largest. Equal ones come once.
        """
        floats = np.concatenate([batch.reshape(-1) for batch in batches])
        floats = floats[:: max(1, len(floats) // _ELEMENTS)]
        if not len(floats):
            return [_over(np.zeros(1), 0.0, 1.0)]
        limits = [np.quantile(floats, [tail, 1 - tail]) for tail in _TAILS]
        found = [_over(floats, low, high) for low, high in limits]
        counts, edges = np.histogram(floats, _BINS)
        losses = [_divergence(counts, edges, low, high) for low, high in limits]
        chosen = [
            min(found, key=lambda r: r.error),
            found[int(np.argmin(losses))],
            found[_TAILS.index(1e-4)],
            found[0],
        ]
        distinct = {(float(r.scale), int(r.zero)): r for r in reversed(chosen)}
        return sorted(distinct.values(), key=lambda r: r.error)

    def rounded(self, floats: np.ndarray) -> np.ndarray:
        """What codes make of `floats`."""
        codes = np.clip(np.rint(floats / self.scale) + self.zero, 0, LEVELS)
        return (codes - self.zero) * self.scale


def _over(floats: np.ndarray, low: float, high: float) -> CodeRange:
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32((high - low) / LEVELS or 1.0)
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, LEVELS))
    found = CodeRange(np.asarray(scale), np.asarray(zero), 0.0)
    lost = np.square(found.rounded(floats) - floats).mean()
    error = float(np.sqrt(lost / (np.square(floats, dtype=np.float64).mean() or 1.0)))
    return CodeRange(found.scale, found.zero, error)


def _divergence(counts: np.ndarray, edges: np.ndarray, low: float, high: float) -> float:
    """Kullback-Leibler divergence of a histogram, from what codes over [low, high] leave of it."""
    first = int(np.clip(np.searchsorted(edges, low, "right") - 1, 0, len(counts) - 1))
    last = int(np.clip(np.searchsorted(edges, high, "left"), first + 1, len(counts)))
    inside = counts[first:last].astype(np.float64)
    true = inside.copy()
    true[0] += counts[:first].sum()
    true[-1] += counts[last:].sum()
    starts = np.unique(np.linspace(0, len(inside), LEVELS + 2)[:-1].astype(np.int64))
    spread = np.diff(np.append(starts, len(inside)))
    seen = inside > 0
    mean = np.add.reduceat(inside, starts) / np.maximum(1, np.add.reduceat(seen, starts, dtype=int))
    left = np.repeat(mean, spread) * seen
    # Bins that hold clipped floats only would make it infinite.
    return float(scipy.stats.entropy(true + 1e-9, left + 1e-9))
