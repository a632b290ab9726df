"""Runs a payload: unpacks it, because libraries cannot be loaded from within a zip, and measures.

`gpu_payload` puts this file into the payload beside what it packs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

INDEX = "index.json"
"""`copies`: files stored under another name; `sparse`: files with holes, by their parts."""


def unpack(payload: Path, folder: Path) -> None:
    """All files of `payload`, into `folder`."""
    with zipfile.ZipFile(payload) as archive:
        archive.extractall(folder)
    index = json.loads((folder / INDEX).read_text())
    for name, original in index["copies"].items():
        os.link(folder / original, folder / name)
    for name, (size, offsets) in index["sparse"].items():
        with (folder / name).open("wb") as file:
            for offset in offsets:
                file.seek(offset)
                file.write((folder / part_name(name, offset)).read_bytes())
            file.truncate(size)


def part_name(name: str, offset: int) -> str:
    """What the part of a sparse file at `offset` is called."""
    return f"{name}@{offset}"


def main() -> int:
    """Measure what is in the payload that this runs from."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(Path(sys.argv[0]), Path(folder))
        site = str(Path(folder) / "site")
        sys.path.insert(0, site)
        known = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [site, known]))  # for peers
        import gpu_measure

        return gpu_measure.main([str(Path(folder) / "cases"), *sys.argv[1:]])
