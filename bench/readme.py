"""Puts what was measured into the README: each table between `<!-- NAME -->` and `<!-- /NAME -->`.

    python bench/readme.py

The tables come from `bench/results` as it is, and that of passes from the passes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy
import compare
import gpu_build
import gpu_report
import portable

from graphopt.pipeline import registry
from graphopt.pipeline.base import needs

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"


def passes() -> str:
    rows = ["| pass | fidelity | what it does | needs |", "|---|---|---|---|"]
    for name, cls in registry.passes().items():
        summary = re.sub(r"\s+", " ", (cls.__doc__ or "").strip().split("\n\n")[0])
        rows.append(f"| `{name}` | {cls.fidelity.value} | {summary} | {needs(cls)} |")
    return "\n".join(rows)


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


TABLES: dict[str, Callable[[], str]] = {
    "compare": lambda: compare.markdown(
        {
            "AVX2": _read("compare"),
            "AVX-512": _read("compare_avx512"),
            "AVX512-BF16, graphopt with `--precision bf16` next to OpenVINO in bf16": _read(
                "compare_bf16"
            ),
        }
    ),
    "compilers": lambda: compare.compilers_markdown(_read("compare_compilers")),
    "portable": lambda: portable.markdown(_read("portable")),
    "accuracy": lambda: accuracy.markdown(_read("accuracy")["results"]),
    "gpu_build": lambda: gpu_build.table(_read("gpu_build")),
    "gpu": lambda: gpu_report.markdown(RESULTS / "gpu.json"),
    "passes": passes,
}


def table_in(text: str, name: str) -> str:
    """What `text` has between the markers of a table; ValueError where it lacks these."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no table <!-- {name} -->")
    return found[1]


def updated(text: str) -> str:
    """`text` with the tables as they should be."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        text = text.replace(f"{start}{table_in(text, name)}{end}", f"{start}{table()}{end}")
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
