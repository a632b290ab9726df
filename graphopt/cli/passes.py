"""`graphopt passes`."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING

from graphopt.cli import console, options

if TYPE_CHECKING:
    from graphopt.pipeline.base import Pass


def passes(name: options.PassName = None) -> None:
    """List the passes and presets, or explain one."""
    from graphopt.pipeline import presets, registry

    known = {preset: str(pipeline) for preset, pipeline in presets.PRESETS.items()}
    if name in known:
        console.stdout().print(known[name], soft_wrap=True)
    elif name is not None:
        _print_one(registry.find(name))
    else:
        rows = [
            (found.name, found.fidelity.value, (inspect.getdoc(found) or "").partition("\n")[0])
            for found in registry.passes().values()
        ]
        out = console.stdout()
        out.print(console.table(("pass", "fidelity", ""), rows))
        out.print(f"\nPresets: {', '.join(known)}", soft_wrap=True)
        out.print("`graphopt passes NAME` explains a pass, or prints the passes of a preset.")


def _print_one(found: type[Pass]) -> None:
    from graphopt.pipeline.base import RewritePass

    out = console.stdout()
    out.print(f"{found.name}  ({found.fidelity.value})\n", style="bold")
    out.print(inspect.getdoc(found), soft_wrap=True)
    options = [
        (field.name, field.type, "" if field.default is dataclasses.MISSING else field.default)
        for field in dataclasses.fields(found)
    ]
    if options:
        out.print(console.table(("option", "type", "default"), options, "\nOptions"))
    if issubclass(found, RewritePass):
        rules = [(rule.name, rule.doc) for rule in found.rules]
        out.print(console.table(("rule", ""), rules, "\nRules"))
