"""Pipelines and their text form: `fixpoint(canonicalize,fold-constants{max_growth=1048576},dce)`.

A preset's name stands for its steps, and `-NAME` takes a pass out of all steps before it:
`O2,-fuse-gemm`. `parse(str(pipeline)) == pipeline`, so a run can be repeated from its report.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import Any, Union, get_args, get_type_hints

from graphopt.errors import SpecError
from graphopt.pipeline import registry
from graphopt.pipeline.base import Pass


@dataclass(frozen=True)
class Fixpoint:
    """Steps repeated until none of them changes anything."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"fixpoint({','.join(spec(step) for step in self.steps)})"


@dataclass(frozen=True)
class Pipeline:
    """Steps run in order."""

    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return ",".join(spec(step) for step in self.steps)

    @staticmethod
    def parse(text: str) -> Pipeline:
        """The pipeline that `text` describes.

        Raises:
            SpecError: with a caret under the place that is wrong.
        """
        return Pipeline(_Parser(text).steps_until_end())


Step = Union[Pass, Fixpoint]


def spec(step: Step) -> str:
    """The text of one step, options that differ from their defaults included."""
    if isinstance(step, Fixpoint):
        return str(step)
    options = [
        f"{f.name}={_text(getattr(step, f.name))}"
        for f in dataclasses.fields(step)
        if getattr(step, f.name) != f.default
    ]
    return step.name + (f"{{{','.join(options)}}}" if options else "")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _without(steps: tuple[Step, ...], name: str) -> tuple[Step, ...]:
    """`steps` but for the pass of that name; a fixpoint of nothing else goes with it."""
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Fixpoint):
            inner = _without(step.steps, name)
            kept += [Fixpoint(inner)] if inner else []
        elif step.name != name:
            kept.append(step)
    return tuple(kept)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def fail(self, message: str, at: int | None = None) -> SpecError:
        return SpecError(message, self.text, self.at if at is None else at)

    def steps_until_end(self) -> tuple[Step, ...]:
        if not self.text.strip():
            return ()
        steps = self.steps()
        if self.at < len(self.text):
            raise self.fail("expected ',' or the end")
        return steps

    def steps(self) -> tuple[Step, ...]:
        found = self.after(())
        while self.accept(","):
            found = self.after(found)
        return found

    def after(self, before: tuple[Step, ...]) -> tuple[Step, ...]:
        """The steps `before` and those named next, or without the pass named next."""
        from graphopt.pipeline import presets  # which are made of what is defined here

        if self.accept("-"):
            start, name = self.at, self.word("a pass name")
            kept = _without(before, self.pass_called(name, start).name)
            if kept == before:
                raise self.fail(f"{name!r} is not among the passes before it", start)
            return kept
        start, name = self.at, self.word("a pass name")
        if name == "fixpoint" and self.accept("("):
            steps = self.steps()
            self.expect(")")
            return (*before, Fixpoint(steps))
        if name in presets.PRESETS:
            return (*before, *presets.PRESETS[name].steps)
        cls = self.pass_called(name, start)
        return (*before, cls(**(self.options(cls) if self.accept("{") else {})))

    def pass_called(self, name: str, start: int) -> type[Pass]:
        cls = registry.passes().get(name)
        if cls is None:
            close = difflib.get_close_matches(name, registry.passes(), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; `graphopt passes` lists them"
            raise self.fail(f"no pass is called {name!r}{hint}", start)
        return cls

    def options(self, cls: type[Pass]) -> dict[str, Any]:
        hints = get_type_hints(cls)
        known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
        options: dict[str, Any] = {}
        while not self.accept("}"):
            start, key = self.at, self.word("an option").replace("-", "_")
            if key not in known:
                raise self.fail(
                    f"{cls.name} has no option {key!r} (it has: {sorted(known)})", start
                )
            self.expect("=")
            options[key] = self.value(known[key])
            if not self.accept(",") and not self.text.startswith("}", self.at):
                raise self.fail("expected ',' or '}'")
        return options

    def value(self, type_: Any) -> Any:
        start = self.at
        text = self.word("a value", r"[^,{}()\s]+")
        if type_ is bool:
            if text not in ("true", "false"):
                raise self.fail("expected true or false", start)
            return text == "true"
        if choices := get_args(type_):
            if text not in choices:
                raise self.fail(f"expected {' or '.join(choices)}", start)
            return text
        try:
            return type_(text)
        except (TypeError, ValueError):
            raise self.fail(f"expected {type_.__name__}, not {text!r}", start) from None

    def word(self, what: str, pattern: str = r"[A-Za-z][\w-]*") -> str:
        found = re.compile(r"\s*(" + pattern + r")\s*").match(self.text, self.at)
        if found is None:
            raise self.fail(f"expected {what}")
        self.at = found.end()
        return found.group(1)

    def accept(self, token: str) -> bool:
        found = re.compile(r"\s*" + re.escape(token) + r"\s*").match(self.text, self.at)
        if found:
            self.at = found.end()
        return bool(found)

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise self.fail(f"expected {token!r}")
