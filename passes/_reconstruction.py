"""What making up for a change of one column of a weight by the others takes."""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts on first use

_DAMPING = 0.01  # of the mean variance, for directions that the inputs hardly show


def with_damping(moments: np.ndarray) -> np.ndarray:
    """Second moments of inputs [n, n], a little variance of its own added to each input."""
    count = len(moments)
    return np.asarray(moments + _DAMPING * (np.trace(moments) / count or 1.0) * np.eye(count))


def inverse_root(moments: np.ndarray) -> np.ndarray:
    """Upper `root` with root' root = 1 / moments.

    If column k of a weight loses d, the columns after it make up for it best by losing
    d / root[k, k] * root[k, j] each, the columns before it being settled (Frantar et al., "GPTQ").
    """
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(moments), np.eye(len(moments)))
    return np.asarray(scipy.linalg.cholesky(inverse, lower=False))
