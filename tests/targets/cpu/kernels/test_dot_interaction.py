"""Pairwise products at every vector length, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.targets.cpu.kernels.dot_interaction import dot_interaction


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize(("features", "dim", "beside"), [(9, 16, 5), (14, 24, 0), (4, 160, 16)])
def test_every_vector_length(compile_kernels, lanes, features, dim, beside):
    rng = np.random.default_rng(dim)
    left, right = (side.astype(np.int32) for side in np.tril_indices(features, -1))
    kernel = dot_interaction(features, dim, len(left), beside, lanes)
    call = compile_kernels({"dots": kernel})["dots"]
    x = rng.normal(size=(5, features, dim)).astype(np.float32)
    head = [rng.normal(size=(5, beside)).astype(np.float32)] if beside else []
    (found,) = call([x, left, right, *head], [((5, beside + len(left)), "float32")])
    wide = x.astype(np.float64)
    products = np.einsum("npd,npd->np", wide[:, left], wide[:, right])
    wanted = np.concatenate([*head, products], axis=1)
    # Sums of up to 160 products of numbers near 1.
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
