"""`--oob zero` gives rows of zeros where tables hold codes, whichever code stands for zero."""

from __future__ import annotations

import numpy as np
import pytest
from code_lookups import FORMS, IDS, lookup, with_zeros

from graphopt.testing import Compiled, parse


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
