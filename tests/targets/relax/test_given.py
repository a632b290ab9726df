"""Programs with many inputs: all are checked, in functions of bounded size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import tirx

import graphopt
from graphopt.errors import InputError
from graphopt.ir.graph import Graph
from graphopt.serving.artifact import Artifact
from graphopt.targets.relax import build
from graphopt.targets.relax.given import GROUP, GivenArrays
from graphopt.targets.relax.straight import buffer_of
from graphopt.testing import parse, random_inputs, run_onnxruntime

TABLES = 150


def model() -> Graph:
    """Lookups in tables of two widths, each with an input of its own, and a sum of products."""
    inputs = ", ".join(f"int64[N] id{k}" for k in range(TABLES))
    tables = ", ".join(f"float[{5 + k},{4 + 4 * (k % 2)}] table{k}" for k in range(TABLES))
    rows = "\n".join(f"row{k} = Gather(table{k}, id{k})" for k in range(TABLES))
    joined = ", ".join(f"row{k}" for k in range(TABLES))
    return parse(
        f"g ({inputs}) => (float[N,3] y) <{tables}, float[{6 * TABLES},3] w> {{\n{rows}\n"
        f"x = Concat<axis=1>({joined})\ny = MatMul(x, w)\n}}"
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[tirx.PrimFunc]]:
    found: list[tirx.PrimFunc] = []

    def straighten(module: Any) -> Any:
        straight = original(module)
        found.extend(straight.module.functions.values())
        return straight

    original = build.straighten
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "straighten", straighten)
        path = tmp_path_factory.mktemp("many") / "m.gopt"
        return graphopt.compile(model(), output=path, verify=False), found


def test_answers(compiled: tuple[Artifact, list[tirx.PrimFunc]]) -> None:
    for batch in (0, 1, 7):
        given = random_inputs(model(), {"N": batch}, seed=batch)
        expected = run_onnxruntime(model(), given)["y"]
        # Sums of 900 products in another order.
        np.testing.assert_allclose(compiled[0].run(given)["y"], expected, rtol=1e-4, atol=1e-4)


def test_no_function_checks_more_than_a_group(
    compiled: tuple[Artifact, list[tirx.PrimFunc]],
) -> None:
    most = 0
    for function in compiled[1]:
        described = sum(isinstance(p.ty, tirx.BufferType) for p in function.params)
        # TVM checks what is passed to functions that have a symbol; kernels take addresses.
        assert described <= GROUP + 1 if "global_symbol" in function.attrs else not described
        most = max(most, len(function.params))
    assert most > 2 * TABLES  # the lookups stay one kernel: tables, ids, rows


@pytest.mark.parametrize("k", [0, GROUP - 1, GROUP, TABLES - 1])
def test_every_input_is_checked(k: int, compiled: tuple[Artifact, list[tirx.PrimFunc]]) -> None:
    given = random_inputs(model(), {"N": 3}, seed=0)
    expected = compiled[0].run(given)["y"]
    for wrong in (given[f"id{k}"][:2], given[f"id{k}"][:, None], given[f"id{k}"].astype(np.int32)):
        with pytest.raises(InputError):
            compiled[0].run({**given, f"id{k}": wrong})
    strided = np.repeat(given[f"id{k}"], 2)[::2]
    np.testing.assert_array_equal(compiled[0].run({**given, f"id{k}": strided})["y"], expected)


def test_dims_computed_from_sizes_of_a_later_group_stay_with_their_function() -> None:
    n = tirx.Var("n", "int64")
    own = [buffer_of((n,), "float32", f"in{k}") for k in range(GROUP)]
    twice = buffer_of((n * 2,), "float32", "twice")
    assert GivenArrays([twice, *own]).functions()  # n is known in the first group
    late = [buffer_of((2,), "float32", f"in{k}") for k in range(GROUP - 1)]
    given = GivenArrays([twice, *late, *own])
    assert not given.functions() and not given.declared()
    assert list(given.params) == [twice, *late, *own]
