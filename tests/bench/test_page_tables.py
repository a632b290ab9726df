"""What is generated on the pages is what the benches' results and the code give."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime.quantization")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import pages


@pytest.mark.parametrize(
    ("page", "name"), [(page, name) for page, parts in pages.PAGES.items() for name in parts]
)
def test_the_page_has_what_is_so(page: str, name: str) -> None:
    shown = pages.part_of((pages.ROOT / page).read_text(), name)
    assert shown == pages.PAGES[page][name](), "run bench/pages.py"


def test_parts_are_replaced_and_the_rest_is_kept() -> None:
    parts = {"a": lambda: "| 1 |\n| 2 |", "b": lambda: "new"}
    text = "x\n<!-- b -->\n<!-- /b -->\n<!-- a -->\nold\n<!-- /a -->\ny\n"
    expected = "x\n<!-- b -->\nnew\n<!-- /b -->\n<!-- a -->\n| 1 |\n| 2 |\n<!-- /a -->\ny\n"
    assert pages.updated(text, parts) == pages.updated(expected, parts) == expected
    with pytest.raises(ValueError, match="no part <!-- b -->"):
        pages.updated("<!-- a -->\n<!-- /a -->", parts)


@pytest.mark.parametrize("page", pages.PAGES)
def test_no_part_is_left_that_nothing_writes(page: str) -> None:
    named = re.findall(r"<!-- (\w+) -->", (pages.ROOT / page).read_text())
    assert set(named) == set(pages.PAGES[page])
