"""Units of a layer's operand that can tell the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts on first use

_ROWS = 8192  # of calibration data that a layer is fitted on
_RIDGE = 1e-6  # of the mean variance


@dataclass(frozen=True)
class LeastSquares:
    """What hidden units contribute to the next layer, and to each other.

    Attributes:
        outgoing: the next layer's weight [units, outputs].
        mean, covariance: of the units.
        order: the units, each the one that moves the outputs most by what those before it do not
            tell (a pivoted Cholesky factorization finds them).
        used: how many it takes to tell the others exactly.
    """

    outgoing: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    order: np.ndarray
    used: int

    @staticmethod
    def seen(batches: Sequence[np.ndarray], outgoing: np.ndarray) -> LeastSquares | None:
        """For units as seen on calibration data [..., units]; None if they are not all finite."""
        data = np.concatenate([batch.reshape(-1, len(outgoing)) for batch in batches])
        if not np.isfinite(data).all():
            return None
        return LeastSquares.of(data[:: max(1, len(data) // _ROWS)], outgoing)

    @staticmethod
    def of(data: np.ndarray, outgoing: np.ndarray) -> LeastSquares:
        """For units as seen on calibration data [rows, units]."""
        rows, weight = data.astype(np.float64), outgoing.astype(np.float64)
        mean = rows.mean(axis=0)
        centered = rows - mean
        covariance = centered.T @ centered / max(1, len(rows))
        reach = np.sqrt(np.square(weight).sum(axis=1))
        moved = covariance * reach * reach[:, None]
        _, pivots, used, _ = scipy.linalg.lapack.dpstrf(
            moved, tol=1e-8 * float(np.diag(moved).max(initial=0))
        )
        return LeastSquares(weight, mean, covariance, pivots - 1, int(used))

    def keep(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """`mixing` [kept, units], `offset` [units] and the loss.

        All units are about kept units @ mixing + offset. The loss is the root mean square of what
        the next layer's outputs miss, relative to how they vary.
        """
        within, across = self.covariance[np.ix_(kept, kept)], self.covariance[kept]
        ridge = _RIDGE * (np.trace(within) / len(kept) or 1.0) * np.eye(len(kept))
        mixing = scipy.linalg.solve(within + ridge, across, assume_a="pos")
        mixing[:, kept] = np.eye(len(kept))
        offset = self.mean - self.mean[kept] @ mixing
        offset[kept] = 0
        missed = self.outgoing.copy()
        missed[kept] = 0
        told = mixing @ self.outgoing - self.outgoing[kept]
        varies = np.sum(self.outgoing * (self.covariance @ self.outgoing))
        left = np.sum(missed * (self.covariance @ missed))
        left += np.sum(told * (within @ told)) - 2 * np.sum(told * (across @ missed))
        return mixing, offset, float(np.sqrt(max(left, 0.0) / varies)) if varies > 0 else 0.0
