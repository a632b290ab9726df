"""Writes what is generated into the pages: each between `<!-- NAME -->` and `<!-- /NAME -->`.

    python bench/pages.py

Figures come from `bench/results` as it is; passes, options and ops from the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import accuracy
import compare
import gpu_build
import gpu_report
import int8
import low_rank
import onnx
import portable
import typer

from graphopt.cli import app
from graphopt.pipeline import registry
from graphopt.pipeline.base import needs
from graphopt.targets.relax.converters import has_converter

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


COMPARED = {
    "AVX2 (Zen 3)": "compare",
    "AVX-512 (Zen 4)": "compare_zen4",
    "AVX-512 (Zen 4), in bfloat16": "compare_bf16",
    "AMX (Granite Rapids)": "compare_amx",
    "AMX (Granite Rapids), in bfloat16": "compare_amx_bf16",
}
"""Machines, and the file of what `compare.py` found there."""


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def headline() -> str:
    """Next to other engines on each machine, and the portable model next to its source."""
    found = {name: compare.means(_read(file)["results"]) for name, file in COMPARED.items()}
    batches = sorted(set().union(*found.values()))
    lines = [["", *(f"batch {batch}" for batch in batches)], ["---", *["---:"] * len(batches)]]
    for name, means in found.items():
        cells = (
            f"{every:.1f} / {some:.1f} / {least:.2f}" for every, some, least, _ in means.values()
        )
        lines.append([name, *cells])
    means = portable.means(_read("portable"))
    cells = (" / ".join(f"{m:.2f}" for m in means.get(batch, ())) for batch in batches)
    lines.append(["portable, in ONNX Runtime", *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def budgets() -> str:
    """What tools make of models, for those that manage all of them."""
    results = _read("accuracy")["results"]
    return accuracy.tools_table(results, least=len(results))


def comparison() -> str:
    return compare.markdown({name: _read(file) for name, file in COMPARED.items()})


def passes() -> str:
    rows = ["| pass | fidelity | what it does | needs |", "|---|---|---|---|"]
    for name, cls in registry.passes().items():
        summary = re.sub(r"\s+", " ", (cls.__doc__ or "").strip().split("\n\n")[0])
        rows.append(f"| `{name}` | {cls.fidelity.value} | {summary} | {needs(cls)} |")
    return "\n".join(rows)


def shared() -> str:
    """The modules that passes share, and which passes each of them serves."""
    folder = ROOT / "passes"
    trees = {path.stem: ast.parse(path.read_text()) for path in sorted(folder.glob("*.py"))}
    reads = {name: {*_siblings(tree)} for name, tree in trees.items()}
    rows = ["| module | holds | for |", "|---|---|---|"]
    for name in (name for name in trees if re.match("_[a-z]", name)):
        summary = (ast.get_docstring(trees[name]) or "").split("\n\n")[0].replace("\n", " ")
        users = _readers(name, reads)
        named = ", ".join(f"`{user.replace('_', '-')}`" for user in users)
        rows.append(f"| `{name}.py` | {summary} | {named if len(users) < 4 else len(users)} |")
    return "\n".join(rows)


def _siblings(tree: ast.AST) -> Iterator[str]:
    """The modules of the passes' folder that one of them imports from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("graphopt.passes."):
            yield (node.module or "").split(".")[2]


def _readers(name: str, reads: dict[str, set[str]]) -> list[str]:
    """The passes that import a module, themselves or by way of others that they share."""
    found, todo = set[str](), [name]
    while todo:
        users = {user for user in reads if todo[-1] in reads[user]} - found
        found |= users
        todo[-1:] = [user for user in users if user.startswith("_")]
    return sorted(user for user in found if not user.startswith("_"))


def options() -> str:
    """Every command, with its arguments and options."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n\n".join(_command(name, command) for name, command in commands.items())


def _command(name: str, command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    named = " ".join(p.metavar if p.required else f"[{p.metavar}]" for p in arguments)
    options = [param for param in command.params if param not in arguments]
    cells = [(f"`{p.metavar}`", p.help) for p in arguments]
    cells += [(_spelled(p), _says(p)) for p in options]
    rows = [f"| {what} | {says} |" for what, says in _escaped(cells)]
    text = inspect.cleandoc(command.help)
    title = f"## graphopt {name} {named}".replace("|", "\\|")
    return "\n".join([title, "", text, "", "| | |", "|---|---|", *rows])


def _spelled(option: Any) -> str:
    metavar = f" {option.metavar}" if option.metavar else ""
    return ", ".join(f"`{word}{metavar}`" for word in (*option.opts, *option.secondary_opts))


def _says(option: Any) -> str:
    default = option.show_default if isinstance(option.show_default, str) else option.default
    shown = isinstance(default, (str, int, float)) and not isinstance(default, bool)
    return f"{option.help} Default: `{default}`." if shown else option.help


def _escaped(cells: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """As a table of Markdown takes them."""
    for what, says in cells:
        yield what.replace("|", "\\|"), says.replace("|", "\\|")


def missing_ops() -> str:
    """The ops of ONNX that neither have a converter nor are functions of ops that do."""
    known = (schema for schema in onnx.defs.get_all_schemas() if not schema.domain)
    missing = [
        schema.name
        for schema in known
        if not (schema.deprecated or schema.has_function or schema.has_context_dependent_function)
        and not has_converter(schema.name)
        and schema.name != "Constant"  # an initializer on import
    ]
    return ", ".join(f"`{op}`" for op in sorted(missing))


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "headline": headline,
        "budgets": budgets,
        "gpu_means": lambda: gpu_report.headline(RESULTS / "gpu.json"),
    },
    "bench/FIGURES.md": {
        "compare": comparison,
        "compilers": lambda: compare.compilers_markdown(_read("compare_compilers")),
        "portable": lambda: portable.markdown(_read("portable")),
        "accuracy": lambda: accuracy.markdown(_read("accuracy")["results"]),
        "int8": lambda: int8.markdown(_read("int8")),
        "low_rank": lambda: low_rank.markdown(_read("low_rank")),
        "gpu_build": lambda: gpu_build.table(_read("gpu_build")),
        "gpu": lambda: gpu_report.markdown(RESULTS / "gpu.json"),
    },
    "graphopt/cli/README.md": {"options": options},
    "passes/README.md": {"passes": passes, "shared": shared},
    "targets/README.md": {"missing_ops": missing_ops},
}
"""What is generated on each page, by the name in its markers."""


def part_of(text: str, name: str) -> str:
    """What `text` has between the markers of a part; ValueError where it lacks these."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no part <!-- {name} -->")
    return found[1].removesuffix("\n")


def updated(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """`text` with its parts as they should be."""
    for name, made in parts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        part_of(text, name)
        text = f"{before}{start}{made()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    for page, parts in PAGES.items():
        path = ROOT / page
        path.write_text(updated(path.read_text(), parts))
