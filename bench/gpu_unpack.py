"""Runs a payload: unpacks it, because libraries cannot be loaded from within a zip, and measures.

`gpu_payload` puts this file into the payload beside what it packs.
"""

from __future__ import annotations

import json
import lzma
import os
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

FILES = "files.tar.xz"
"""What there is to unpack."""
HOLES = "@holes"
"""Ends the name of what says how large a sparse file is, and where its parts go."""


def unpack(payload: Path, folder: Path) -> None:
    """All files of `payload`, into `folder`."""
    with (
        zipfile.ZipFile(payload) as archive,
        archive.open(FILES) as packed,
        lzma.open(packed) as content,
        tarfile.open(fileobj=content, mode="r|") as tar,
    ):
        tar.extractall(folder, filter="data")
    for index in list(folder.rglob(f"*{HOLES}")):
        whole = index.with_name(index.name.removesuffix(HOLES))
        described = json.loads(index.read_text())
        with whole.open("wb") as file:
            for offset in described["offsets"]:
                file.seek(offset)
                file.write(Path(part_name(str(whole), offset)).read_bytes())
            file.truncate(described["size"])


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
