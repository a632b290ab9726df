"""Broken copies of generated CUDA C, run in the place of the right code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import gpu_emulator
import pytest


class Mutation(NamedTuple):
    """In the kernel whose name has `kernel` in it, the first match of a pattern is replaced."""

    kernel: str
    pattern: str
    replacement: str

    def applied(self, source: str) -> str:
        """CUDA C so changed; a test whose mutation finds nothing to change fails."""
        definitions = re.split(r'(?=extern "C" __global__)', source)
        for k, definition in enumerate(definitions):
            name = re.search(r"\) (\w+)\([^)]*\) \{", definition)
            if name is None or self.kernel not in name[1]:
                continue
            changed = re.sub(self.pattern, self.replacement, definition, count=1)
            if changed == definition:
                pytest.fail(f"there is nothing to change in {name[1]}")
            return "".join([*definitions[:k], changed, *definitions[k + 1 :]])
        pytest.fail(f"there is no kernel {self.kernel}")


def replaced(source: str, old: str, new: str) -> str:
    """CUDA C with another text in the place of one that it holds; without that a test fails."""
    if old not in source:
        pytest.fail(f"there is no {old!r} to edit")
    return source.replace(old, new)


@contextmanager
def mutant(artifact: Path, emulation: Path, edit: Callable[[str], str]) -> Iterator[None]:
    """Within, an artifact that was compiled for emulation with races runs the broken code."""
    source = (artifact / "model.cu").read_text()
    original = gpu_emulator.library_of(source, emulation, races=True)
    broken = gpu_emulator.library_of(edit(source), emulation, races=True)
    kept = original.with_suffix(".kept")
    shutil.copy(original, kept)
    shutil.copy(broken, original)
    try:
        yield
    finally:
        shutil.copy(kept, original)
