"""Float matrices in few bits, a scale for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.passes._reconstruction import inverse_root, with_damping

# Of the largest element. With 15 levels, clipping it may lose less; with 255 it gains the others at
# most dim * (1 - clip ** 2) / 12 / 127 ** 2 of what it loses, (1 - clip) ** 2.
_CLIPS = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.7), 8: (1.0,)}
_NORMAL = float(np.finfo(np.float16).tiny)
_CHUNK = 1 << 18  # elements worked on at once, which fit a cache


@dataclass(frozen=True)
class RoundedRows:
    """A matrix [rows, columns] as int8 codes, each to be multiplied by the scale of its row.

    Attributes:
        scales: [rows], or [rows, groups] for groups of as many neighbouring columns.
        error: root mean square of what the elements lost.
    """

    codes: np.ndarray
    scales: np.ndarray
    error: float

    @staticmethod
    def of(
        matrix: np.ndarray, bits: int, *, half_scales: bool, group: int | None = None
    ) -> RoundedRows:
        """`matrix` with the scale of each row that loses least; rows of zeros stay zero.

        Args:
            half_scales: scales have 16 bits if that is exact enough for all of them. Codes are
                rounded with the scales as they are stored.
            group: columns that share a scale, which must divide their number; None for all.
        """
        if group is not None:
            found = RoundedRows.of(matrix.reshape(-1, group), bits, half_scales=half_scales)
            of_groups = found.scales.reshape(len(matrix), -1)
            return RoundedRows(found.codes.reshape(matrix.shape), of_groups, found.error)
        clips, top = _CLIPS[bits], 2 ** (bits - 1) - 1
        half = half_scales and _fit_in_half(matrix, top, min(clips))
        codes = np.zeros(matrix.shape, np.int8)
        scales = np.zeros(len(matrix), np.float16 if half else np.float32)
        step, lost = max(1, _CHUNK // max(1, matrix.shape[1])), 0.0
        for start in range(0, len(matrix), step):
            rows = slice(start, start + step)
            lost += _round_into(codes[rows], scales[rows], matrix[rows], top, clips)
        return RoundedRows(codes, scales, float(np.sqrt(lost / max(1, matrix.size))))

    def adapted(self, matrix: np.ndarray, moments: np.ndarray) -> RoundedRows:
        """Codes, with the same scales, that keep what `matrix` makes of the inputs it meets.

        Column by column, what rounding one loses is made up for by the columns still to come, as
        far as the inputs go together (Frantar et al., "GPTQ", 2023).

        Args:
            moments: second moments of the inputs, [columns, columns].
        """
        damped = with_damping(moments)
        root, left = inverse_root(damped), matrix.astype(np.float64)
        codes = np.empty(matrix.shape, np.int8)
        steps = np.where(self._spread > 0, self._spread, 1)
        top = int(np.abs(self.codes).max(initial=1))
        for column in range(len(root)):
            wanted = left[:, column]
            step = steps[:, column]
            codes[:, column] = np.clip(np.rint(wanted / step), -top, top)
            lost = (wanted - codes[:, column] * step) / root[column, column]
            left[:, column + 1 :] -= np.outer(lost, root[column, column + 1 :])
        made = RoundedRows(codes, self.scales, self.error)
        return min(self, made, key=lambda rounded: rounded._lost(matrix, damped))

    def _lost(self, matrix: np.ndarray, moments: np.ndarray) -> float:
        """Mean square of what outputs of the matrix lose, all of them together."""
        off = self.codes * self._spread - matrix
        return float(np.sum(off @ moments * off))

    @property
    def _spread(self) -> np.ndarray:
        """The scale of each element, float64."""
        scales = self.scales.reshape(len(self.codes), -1).astype(np.float64)
        return np.repeat(scales, self.codes.shape[1] // scales.shape[1], axis=1)


def _fit_in_half(matrix: np.ndarray, top: int, clip: float) -> bool:
    largest = np.maximum(matrix.max(axis=1), -matrix.min(axis=1)).astype(np.float64)
    used = largest[largest > 0] / top
    if not len(used):
        return True
    return bool(used.min() * clip >= _NORMAL and used.max() <= np.finfo(np.float16).max)


def _round_into(
    codes: np.ndarray, scales: np.ndarray, rows: np.ndarray, top: int, clips: Sequence[float]
) -> float:
    """Set the codes in [-top, top] and scales of some rows; returns the sum of squared errors."""
    largest = np.abs(rows).max(axis=1)
    best = np.full(len(rows), np.inf)
    for clip in clips:
        scale = (largest * np.float32(clip) / np.float32(top)).astype(scales.dtype)
        step = np.where(scale > 0, scale, 1).astype(np.float32)[:, None]
        found = np.clip(np.rint(rows / step), -top, top)
        error = np.square(rows - found * step).sum(axis=1)
        better = error < best
        best[better], scales[better] = error[better], scale[better]
        codes[better] = found[better]
    return float(best.sum())
