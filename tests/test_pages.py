"""What the pages show works: commands, code, links, and the names of files and options."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from command import graphopt

import graphopt as graphopt_package
from graphopt.cli import app

ROOT = Path(__file__).parent.parent
HOMES = ("graphopt", "passes", "targets", "bench", "examples")
README = ROOT / "README.md"
PAGES = [README, *sorted(page for home in HOMES for page in (ROOT / home).rglob("*.md"))]
PYTHON = ROOT / "graphopt" / "README.md"
RATIONALE = ROOT / "graphopt" / "RATIONALE.md"  # it speaks of earlier states, too
GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands


def of_pages(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


each_page = of_pages(PAGES)
each_present_page = of_pages([page for page in PAGES if page != RATIONALE])


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of what is fenced off on a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def lines(page: Path) -> list[str]:
    """The lines of a page that are code: of all blocks, and indented ones."""
    fenced = [text for _, text in blocks(page)]
    indented = re.findall(r"^    \S.*$(?:\n {8}.*)?", page.read_text(), re.MULTILINE)
    text = re.sub(r"\\\n\s*", " ", "\n".join([*fenced, *indented]))
    return [line.strip() for line in text.splitlines()]


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The file and the heading that each link to another place here leads to."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("https://", "http://")):
            path, _, heading = target.partition("#")
            yield (page.parent / path).resolve() if path else page, heading


def anchors(page: Path) -> set[str]:
    """What headings are called in links."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@of_pages([page for page in PAGES if {"sh", "python"} & {kind for kind, _ in blocks(page)}])
def test_commands_and_code_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in a folder that has the examples and nothing else."""
    monkeypatch.chdir(folder)
    for kind, text in blocks(page):
        if kind == "python":
            done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        for line in text.splitlines() if kind == "sh" else ():
            program, *args = shlex.split(line)
            assert program == "graphopt"
            outcome = graphopt(*args)
            assert outcome.status == 0, (line, outcome)


def has_option(script: str, option: str) -> bool:
    """Whether the text of a bench has an option: spelled out, or as a parameter for typer."""
    parameter = option.removeprefix("--").removeprefix("no-").replace("-", "_")
    return re.search(rf'"{option}"|^    {parameter}: ', script, re.MULTILINE) is not None


@each_present_page
def test_commands_that_do_not_run_here_make_sense(page: Path) -> None:
    """Those for GPUs or real models: the command line takes them, benches have their options."""
    for line in lines(page):
        program, *args = shlex.split(line, comments=True) or [""]
        if program == "graphopt":
            COMMANDS[args[0]].make_context(args[0], args[1:])
        elif program == "python" and args[0].startswith("bench/"):
            script = (ROOT / args[0]).read_text()
            for option in (arg for arg in args if arg.startswith("--")):
                assert has_option(script, option), line


@each_present_page
def test_options_exist(page: Path) -> None:
    """Those named in sentences."""
    params = [param for command in (GROUP, *COMMANDS.values()) for param in command.params]
    known = {word for param in params for word in (*param.opts, *param.secondary_opts)}
    scripts = "\n".join(script.read_text() for script in (ROOT / "bench").glob("*.py"))
    for span in re.findall(r"`((?:graphopt |python bench/|--)[^`\n]*)`", page.read_text()):
        benches = page.parent.name == "bench" or span.startswith("python")
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", span):
            assert option in known or (benches and has_option(scripts, option)), span


@each_present_page
def test_files_and_folders_exist(page: Path) -> None:
    """Those called by their path from the top, and those that a table of the folder describes."""
    text = page.read_text()
    named = re.findall(rf"`((?:{'|'.join(HOMES)}|tests)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    files = re.findall(r"^\| `(\w+\.\w+)[ `]", text, re.MULTILINE)
    assert [name for name in files if not (page.parent / name).exists()] == []


def test_signatures_are_those_of_the_code() -> None:
    """What the page of the Python interface shows of each name: all of it, in order."""
    shown = re.findall(r"^\| `graphopt\.(\w+)\((.*?)\)` \|", PYTHON.read_text(), re.MULTILINE)
    assert len(shown) >= 7
    for name, parameters in shown:
        made: dict[str, Any] = {}
        exec(f"def f({parameters}): ...", made)
        found = inspect.signature(getattr(graphopt_package, name)).parameters.values()
        wanted = inspect.signature(made["f"]).parameters.values()
        code = [
            (p.name, p.kind, _default(p)) for p in found if name != "Tuning" or p.name != "progress"
        ]
        assert [(p.name, p.kind, p.default) for p in wanted] == code, name


def _default(parameter: inspect.Parameter) -> Any:
    """Its default, made where a dataclass makes a new one each time: an empty dictionary."""
    return {} if str(parameter.default) == "<factory>" else parameter.default


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for path, heading in links(page):
        assert path.exists(), path
        assert not heading or heading in anchors(path), f"{path}#{heading}"


def test_every_page_is_one_step_from_the_readme() -> None:
    assert {path for path, _ in links(README)} >= set(PAGES) - {README}


def test_the_readme_is_short() -> None:
    """So that what is added finds its place on another page."""
    assert len(README.read_text().splitlines()) <= 300


def test_no_decision_is_told_twice() -> None:
    """No title, and no long line of text: changes that meet in one place are all kept."""
    lines = [re.sub(r"^### [\d-]+ ", "### ", line) for line in RATIONALE.read_text().splitlines()]
    told = Counter(line for line in lines if line.startswith("### ") or len(line) > 60)
    assert [line for line, times in told.items() if times > 1] == []
