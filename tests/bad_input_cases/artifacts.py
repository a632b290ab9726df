"""Artifacts that were damaged, or are for other machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input_cases.case import Case, Kit
from graphopt.serving.manifest import MANIFEST, manifest_text, read_manifest


def damaged(name: str, damage: Callable[[Path], object], says: str, verb: str = "run") -> Case:
    """Spoil an artifact, then use it."""

    def args(kit: Kit) -> list[object]:
        artifact = kit.artifact()
        damage(artifact)
        return [verb, artifact, *(["--inputs", kit.arrays()] if verb == "run" else [])]

    return Case(name, args, says)


def manifest(name: str, says: str, **changed: Any) -> Case:
    """Change entries of the manifest, or remove them (None)."""

    def damage(artifact: Path) -> None:
        entries = {**read_manifest(artifact), **changed}
        kept = {k: v for k, v in entries.items() if v is not None}
        (artifact / MANIFEST).write_text(manifest_text(kept))

    return damaged(name, damage, says)


def cut(name: str, file: str, says: str, keep: float = 0.5) -> Case:
    def damage(artifact: Path) -> None:
        data = (artifact / file).read_bytes()
        (artifact / file).write_bytes(data[: int(len(data) * keep)])

    return damaged(name, damage, says)


def gone(name: str, file: str, says: str, verb: str = "run") -> Case:
    return damaged(name, lambda artifact: (artifact / file).unlink(), says, verb)


def _another_digit(artifact: Path) -> None:
    path = artifact / MANIFEST
    path.write_text(path.read_text().replace('"offset": 0', '"offset": 4', 1))


def _zero_library(artifact: Path) -> None:
    path = artifact / "model.so"
    path.write_bytes(bytes(path.stat().st_size))


CASES = [
    Case("no artifact at all", lambda kit: ["run", kit.folder, "--random"], "not a graphopt"),
    gone("no manifest", MANIFEST, "not a graphopt artifact"),
    damaged("a garbled manifest", lambda a: (a / MANIFEST).write_text("{..."), "damaged"),
    damaged("a manifest of bytes", lambda a: (a / MANIFEST).write_bytes(b"\xff\xfe"), "damaged"),
    damaged("a digit changed in the manifest", _another_digit, "manifest.json: damaged"),
    damaged("a manifest that is a list", lambda a: (a / MANIFEST).write_text("[1]"), "manifest"),
    manifest("another format", "format 99", format=99),
    manifest("another machine", "compiled for vax", machine="vax"),
    manifest("a CPU with more features", "lacks.*warp", cpu_features=["warp"]),
    manifest("a manifest without inputs", "damaged", inputs=None),
    manifest("inputs of another form", "damaged", inputs=[1, 2]),
    manifest("an unknown dtype", "damaged",
             weights=[{"dtype": "float33", "shape": [1], "offset": 0, "nbytes": 4}]),
    manifest("weights of another shape", "damaged",
             weights=[{"dtype": "float32", "shape": [3], "offset": 0, "nbytes": 4}]),
    gone("no library", "model.so", "missing"),
    cut("the library cut short", "model.so", "bytes instead of"),
    cut("an empty library", "model.so", "bytes instead of", keep=0),
    damaged("a library of the right size", _zero_library, "model.so: damaged"),
    gone("no weights", "weights.bin", "missing"),
    cut("the weights cut short", "weights.bin", "bytes instead of"),
    gone("inspect: no portable model", "model.onnx", "model.onnx", verb="inspect"),
    damaged("inspect: garbled", lambda a: (a / MANIFEST).write_text("?"), "damaged", "inspect"),
]  # fmt: skip
