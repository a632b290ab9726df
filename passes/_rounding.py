"""Float matrices in few bits, a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)  # of the largest element; clipping it may lose less
_NORMAL = float(np.finfo(np.float16).tiny)
_CHUNK = 1 << 16  # rows worked on at once


@dataclass(frozen=True)
class RoundedRows:
    """A matrix [rows, columns] as int8 codes, each to be multiplied by the scale of its row.

    Attributes:
        error: root mean square of what the elements lost.
    """

    codes: np.ndarray
    scales: np.ndarray
    error: float

    @staticmethod
    def of(matrix: np.ndarray, bits: int, *, half_scales: bool) -> RoundedRows:
        """`matrix` with the scale of each row that loses least; rows of zeros stay zero.

        Args:
            half_scales: scales have 16 bits if that is exact enough for all of them. Codes are
                rounded with the scales as they are stored.
        """
        top = 2 ** (bits - 1) - 1
        dtype = np.float16 if half_scales and _fit_in_half(matrix, top) else np.float32
        starts = range(0, len(matrix), _CHUNK)
        parts = [_rounded(matrix[k : k + _CHUNK], top, dtype) for k in starts]
        codes = np.concatenate([part[0] for part in parts])
        scales = np.concatenate([part[1] for part in parts])
        error = float(np.sqrt(sum(part[2] for part in parts) / max(1, matrix.size)))
        return RoundedRows(codes, scales, error)


def _fit_in_half(matrix: np.ndarray, top: int) -> bool:
    largest = np.abs(matrix).max(axis=1).astype(np.float64)
    used = largest[largest > 0] / top
    if not len(used):
        return True
    return bool(used.min() * min(_CLIPS) >= _NORMAL and used.max() <= np.finfo(np.float16).max)


def _rounded(rows: np.ndarray, top: int, dtype: type) -> tuple[np.ndarray, np.ndarray, float]:
    """Codes in [-top, top] and scales of some rows, and the sum of squared errors."""
    largest = np.abs(rows).max(axis=1)
    best = np.full(len(rows), np.inf)
    codes = np.zeros(rows.shape, np.int8)
    scales: np.ndarray = np.zeros(len(rows), dtype)
    for clip in _CLIPS:
        scale = (largest * np.float32(clip) / np.float32(top)).astype(dtype)
        step = np.where(scale > 0, scale, 1).astype(np.float32)[:, None]
        found = np.clip(np.rint(rows / step), -top, top)
        error = np.square(rows - found * step).sum(axis=1)
        better = error < best
        best[better], scales[better] = error[better], scale[better]
        codes[better] = found[better].astype(np.int8)
    return codes, scales, float(best.sum())
