"""Weights of products of two sets of inputs as sums of outer products of vectors, by tensorly."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import scipy  # loads its parts on first use

_CHUNK = 512  # rows worked on at once
_ROUNDS = 50  # of alternating least squares
_ENOUGH = 1e-5  # of the norm: a round that gains less is the last one
_REGULAR = 1e-12  # keeps components that nothing is left for from growing
_DAMPING = 1e-4  # of the mean variance, for directions that calibration data do not show
_RIDGE = 1e-6  # of the mean variance of the products


@dataclass(frozen=True, eq=False)
class BilinearLayer:
    """Sums of products of inputs x [h] and y [m], as they were seen.

    Output k is the sum over i and j of `weight[i, j, k]` x_i y_j.

    Attributes:
        weight: float64[h, m, k].
        left, right: float64[rows, h] and [rows, m]: x and y on calibration data.
        outputs: float64[rows, k]: what these give.
        whitened: the weight as it is for inputs whose second moments are 1, if x and y were
            independent: an error in it is then one of the outputs.
        roots: of the second moments of x and y, lower triangular.
    """

    weight: np.ndarray
    left: np.ndarray
    right: np.ndarray
    outputs: np.ndarray
    whitened: np.ndarray
    roots: tuple[np.ndarray, np.ndarray]

    @staticmethod
    def of(weight: np.ndarray, left: np.ndarray, right: np.ndarray) -> BilinearLayer:
        """The layer of a weight [h, m, k] for some rows of inputs."""
        weight, left, right = (array.astype(np.float64) for array in (weight, left, right))
        roots = _root(left), _root(right)
        whitened = np.einsum("ia,ijk,jb->abk", roots[0], weight, roots[1], optimize=True)
        outputs = np.empty((len(left), weight.shape[2]))
        for at in range(0, len(left), _CHUNK):
            half = np.tensordot(left[at : at + _CHUNK], weight, 1)  # [rows, m, k]
            outputs[at : at + _CHUNK] = np.einsum("njk,nj->nk", half, right[at : at + _CHUNK])
        return BilinearLayer(weight, left, right, outputs, whitened, roots)

    def factors(self, rank: int) -> CpFactors:
        """The best `rank` products of a sum of x with a sum of y that are found."""
        first, second, last = decompose(self.whitened, rank)
        first, second = (
            scipy.linalg.solve_triangular(root.T, factor, lower=False)
            for root, factor in zip(self.roots, (first, second))
        )
        sums = self.left @ first, self.right @ second
        sizes = [np.sqrt(np.square(sum_).mean(axis=0)) for sum_ in sums]
        sizes = [np.where(size > 0, size, 1.0) for size in sizes]  # sums of size 1 bear rounding
        products = sums[0] / sizes[0] * (sums[1] / sizes[1])
        scaled = (last * sizes[0] * sizes[1]).T
        last, shift = _fitted(products, scaled, self.outputs)
        lost = products @ last + shift - self.outputs
        size = np.square(self.outputs).sum() or 1.0
        error = float(np.sqrt(np.square(lost).sum() / size))
        return CpFactors(first / sizes[0], second / sizes[1], last, shift, error)


@dataclass(frozen=True, eq=False)
class CpFactors:
    """A layer whose outputs are ((x @ left) * (y @ right)) @ outgoing + shift.

    Attributes:
        left, right, outgoing, shift: [h, r], [m, r], [r, k], [k].
        error: root mean square of what the outputs lose on calibration data, of theirs.
    """

    left: np.ndarray
    right: np.ndarray
    outgoing: np.ndarray
    shift: np.ndarray
    error: float


def decompose(tensor: np.ndarray, rank: int) -> list[np.ndarray]:
    """Factors [size, rank] for each axis of `tensor`, by alternating least squares; seeded."""
    from tensorly.decomposition import parafac

    rng, start = np.random.default_rng(0), []
    for axis, size in enumerate(tensor.shape):
        unfolded = np.moveaxis(tensor, axis, 0).reshape(size, -1)
        _, vectors = scipy.linalg.eigh(unfolded @ unfolded.T)
        own = vectors[:, ::-1][:, :rank]
        start.append(np.concatenate([own, rng.normal(size=(size, rank - own.shape[1]))], 1))
    scale = float(np.linalg.norm(tensor))
    if not scale:
        return [np.zeros((size, rank)) for size in tensor.shape]
    options = {"n_iter_max": _ROUNDS, "tol": _ENOUGH, "l2_reg": _REGULAR}
    made = parafac(tensor / scale, rank, init=(np.ones(rank), start), **options)
    first, second, third = (np.asarray(factor) for factor in made.factors)
    return [first, second, third * scale]


def is_available() -> bool:
    """True if tensorly is installed."""
    return find_spec("tensorly") is not None


def _root(rows: np.ndarray) -> np.ndarray:
    """Lower triangular root of the second moments of `rows`, a little damped."""
    moments = rows.T @ rows / max(1, len(rows))
    spread = np.trace(moments) / len(moments) or 1.0
    damped = moments + _DAMPING * spread * np.eye(len(moments))
    return np.asarray(scipy.linalg.cholesky(damped, lower=True))


def _fitted(
    products: np.ndarray, last: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`last` [r, k] and a shift [k], changed so that products @ last + shift is near `wanted`."""
    known = np.concatenate([products, np.ones((len(products), 1))], 1)
    moments = known.T @ known
    ridge = _RIDGE * (np.trace(moments) / len(moments) or 1.0) * np.eye(len(moments))
    missing = known.T @ (wanted - products @ last)
    change = scipy.linalg.solve(moments + ridge, missing, assume_a="pos")
    return last + change[:-1], change[-1]
