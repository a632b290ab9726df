"""The README's tables are what the benches' results and the passes give."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime.quantization")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import readme


@pytest.mark.parametrize("name", readme.TABLES)
def test_readme_has_what_was_measured(name: str) -> None:
    shown = readme.table_in(readme.README.read_text(), name)
    assert shown == readme.TABLES[name](), "run bench/readme.py"


def test_tables_are_replaced_and_the_rest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "TABLES", {"a": lambda: "| 1 |\n| 2 |", "b": lambda: "new"})
    text = "x\n<!-- b -->\n\n<!-- /b -->\n<!-- a -->\nold\n<!-- /a -->\ny\n"
    expected = "x\n<!-- b -->\nnew\n<!-- /b -->\n<!-- a -->\n| 1 |\n| 2 |\n<!-- /a -->\ny\n"
    assert readme.updated(text) == readme.updated(expected) == expected
    with pytest.raises(ValueError, match="no table <!-- b -->"):
        readme.updated("<!-- a -->\n\n<!-- /a -->")
