"""Cross layers at every vector length, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.targets.cpu.kernels.cross_network import cross_network


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_vector_length(compile_kernels, lanes):
    rng = np.random.default_rng(lanes)
    x, w, s, b = (
        rng.normal(size=size).astype(np.float32) for size in [(3, 45), (45, 3), (3,), (45,)]
    )
    call = compile_kernels({"cross": cross_network(45, 3, lanes)})["cross"]
    (found,) = call([x, np.ascontiguousarray(w.T), s, b], [((3, 45), "float32")])
    multiple = np.ones((3, 1))
    for column, shift in zip(w.T, s):
        multiple = multiple * (1 + x.astype(np.float64) @ column[:, None]) + shift
    # Products of three sums of 45 products of numbers near 1.
    np.testing.assert_allclose(found, multiple * x + b, rtol=1e-4, atol=1e-3)
