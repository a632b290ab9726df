"""Sums over feature pairs at every vector length, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.targets.cpu.kernels.bi_interaction import bi_interaction


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("dim", [1, 8, 10, 16, 47])
def test_every_vector_length(compile_kernels, lanes, dim):
    kernels = {
        f"{pooled}{features}": bi_interaction(features, dim, 0.5, pooled, lanes)
        for pooled in (False, True)
        for features in (9, None)
    }
    calls = compile_kernels(kernels)
    x = np.random.default_rng(dim).normal(size=(5, 9, dim)).astype(np.float32)
    wide = x.astype(np.float64)
    wanted = 0.5 * (wide.sum(1) ** 2 - (wide**2).sum(1))
    for name, call in calls.items():
        pooled = name.startswith("True")
        (found,) = call([x], [((5, 1 if pooled else dim), "float32")])
        answer = wanted.sum(1, keepdims=True) if pooled else wanted
        # The difference of sums of up to 423 squares of numbers near 1.
        np.testing.assert_allclose(found, answer, rtol=1e-5, atol=1e-4)
