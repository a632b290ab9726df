"""Bags over large tables of 16 bits: read where they lie, with memory asked for ahead."""

from __future__ import annotations

import re

import numpy as np
import pytest

from graphopt.errors import IdError, UnsupportedOpError
from graphopt.ir.graph import Graph
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.relax.lowering import lower
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

ROWS = 20_000  # beyond what a cache holds, so that rows are prefetched
FORMS = {
    "fixed": ("int64[N,3] ids", "(t, ids)"),
    "weighted": ("int64[N,3] ids, float[N,3] w", "(t, ids, , v)"),
    "csr": ("int64[9] ids, int64[4] offsets", "(t, ids, offsets)"),
}


def bags(form: str, dtype: str, mode: str) -> Graph:
    inputs, arguments = FORMS[form]
    weights = f"v = Cast<to={10 if dtype == 'float16' else 16}>(w)" if form == "weighted" else ""
    return parse(
        f"""({inputs}) => (float[] y) <{dtype}[{ROWS},40] t> {{
            {weights}
            p = graphopt.EmbeddingBag<mode="{mode}">{arguments}
            y = Cast<to=1>(p)
        }}"""
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_halves(form: str, dtype: str, mode: str) -> None:
    if (form, mode) == ("weighted", "max"):
        return
    graph = bags(form, dtype, mode)
    feeds = random_inputs(graph, {"N": 5})
    if form == "csr":
        feeds["offsets"] = np.array([0, 2, 2, 7])
    found, wanted = Compiled(graph)(feeds)["y"], run_onnxruntime(graph, feeds)["y"]
    # Both add up in float32 and round once: next to the middle of two numbers, to either.
    step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    np.testing.assert_allclose(found, wanted, rtol=step, atol=1e-6)
    assert (found == wanted).mean() > 0.9


@pytest.mark.parametrize("form", ["weighted", "csr"])
def test_no_kernel_makes_another_table(form: str) -> None:
    graph = CpuTarget.parse("").legalize(bags(form, "bfloat16", "sum"))
    text = lower(graph).module.script()
    tables = set(re.findall(rf"R.Tensor\(\({ROWS}, 40\), dtype=.(\w+).\)", text))
    assert tables == {"uint16"}


COMPUTED = """(float[R,40] x, {inputs}) => (float[] y) {{
    t = Neg(x) y = graphopt.EmbeddingBag<mode="sum"{padding}>{arguments} }}"""


@pytest.mark.parametrize("form", ["fixed", "csr"])
def test_tables_that_are_computed_have_any_number_of_rows(form: str) -> None:
    inputs, arguments = FORMS[form]
    graph = parse(COMPUTED.format(inputs=inputs, arguments=arguments, padding=""))
    run = Compiled(graph)
    for rows in (2, 7):
        feeds = random_inputs(graph, {"N": 5, "R": rows})
        feeds["ids"] %= rows
        if form == "csr":
            feeds["offsets"] = np.array([0, 2, 2, 7])
        wanted = run_onnxruntime(graph, feeds)["y"]
        # Sums of up to three in another order.
        np.testing.assert_allclose(run(feeds)["y"], wanted, rtol=1e-5, atol=1e-6)
        feeds["ids"][-1] = rows
        with pytest.raises(IdError, match="axis of computed size"):
            run(feeds)


def test_padding_in_a_table_of_any_number_of_rows_is_refused() -> None:
    text = COMPUTED.format(inputs="int64[N,3] ids", arguments="(t, ids)", padding=", padding_idx=0")
    with pytest.raises(UnsupportedOpError, match="size of its table"):
        Compiled(parse(text))
