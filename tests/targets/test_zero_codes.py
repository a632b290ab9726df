"""`--oob zero` gives rows of zeros where tables hold codes, whichever code stands for zero."""

from __future__ import annotations

import numpy as np
import pytest
from code_lookups import FORMS, IDS, lookup, with_zeros

from graphopt.errors import UnsupportedOpError
from graphopt.testing import Compiled, parse, run_onnxruntime


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_zeros(form: str) -> None:
    found = Compiled(lookup(form), "zero")({"i": IDS})["y"]
    np.testing.assert_allclose(found, with_zeros(form), rtol=1e-5, atol=1e-6)


def test_codes_that_stay_codes_are_codes_0() -> None:
    text = "(int64[N,3] i) => (uint8[] y) <uint8[5,3] t> { y = Gather(t, i) }"
    found = Compiled(parse(text), "zero")({"i": IDS})["y"]
    bad = (IDS < -5) | (IDS > 4)
    assert not found[bad].any()
    assert found[~bad].any(axis=1).all()


COLUMNS = "float[3] s = {0.1, 0.2, 0.3}, uint8[3] z = {3, 0, 250}"
REFUSED = {
    "columns under others": """g = Gather(t, i) f = Flatten(g) h = Transpose(f)
        k = Reshape(h, r) y = DequantizeLinear<axis=1>(k, s, z)""",
    "columns of elements": "g = GatherElements(t, i) y = DequantizeLinear<axis=1>(g, s, z)",
    "a column for each id": """w = Transpose(t) g = Gather<axis=1>(w, e)
        h = Gather<axis=0>(g, i) y = DequantizeLinear<axis=1>(h, s, z)""",
    "what is given": "g = Gather(t, i) y = DequantizeLinear(g, one, given)",
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_known_to_be_zero_is_refused_in_one_line(form: str) -> None:
    graph = parse(f"""(int64[N,3] i, int64[N,3] e, uint8 given) => (float[] y)
        <uint8[5,3] t, {COLUMNS}, float one = {{0.1}}, int64[2] r = {{-1, 3}}> {{
        {REFUSED[form]} }}""")
    with pytest.raises(UnsupportedOpError, match=r"Gather.*codes stand for zero.*--oob clamp"):
        Compiled(graph, "zero")


def test_ids_that_are_known_need_no_row_of_zeros() -> None:
    text = """(uint8 z) => (float[] y) <uint8[5,3] t, int64[2] i = {4, -5}, float s = {0.5}> {
        g = Gather(t, i) y = DequantizeLinear(g, s, z) }"""
    feeds = {"z": np.array(9, np.uint8)}
    wanted = run_onnxruntime(parse(text), feeds)["y"]
    np.testing.assert_array_equal(Compiled(parse(text), "zero")(feeds)["y"], wanted)
