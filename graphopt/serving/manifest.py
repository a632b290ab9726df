"""The manifest of an artifact: what it is, which files it has, and which machines can run it."""

from __future__ import annotations

import json
import platform
import zlib
from pathlib import Path
from typing import Any

from graphopt.errors import ArtifactError
from graphopt.machine import host_features, tiles_allowed
from graphopt.serving import gpu_runtime
from graphopt.serving.signature import Signature, TensorSpec

FORMAT = 3
MANIFEST, LIBRARY, WEIGHTS, PORTABLE, REPORT = (
    "manifest.json",
    "model.so",
    "weights.bin",
    "model.onnx",
    "report.json",
)
CHECKSUM = "checksum"
"""The manifest's entry that vouches for the others; artifacts made before it was there lack it."""


def read_manifest(path: Path) -> dict[str, Any]:
    """What the artifact in folder `path` says of itself, whichever machine it is for.

    Raises:
        ArtifactError: there is no manifest, or it is damaged or of another version.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path}: {_not_an_artifact(path)}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path / MANIFEST}: damaged ({error}); compile it again") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ArtifactError(f"{path / MANIFEST}: not a graphopt manifest; compile the model again")
    if manifest["format"] != FORMAT:
        raise ArtifactError(
            f"{path}: has format {manifest['format']}, this version reads {FORMAT}; "
            "compile it again"
        )
    wanted = manifest.pop(CHECKSUM, None)
    if wanted not in (None, _checksum(manifest)):
        raise ArtifactError(
            f"{path / MANIFEST}: damaged; copy it again, or compile the model again"
        )
    return manifest


def _not_an_artifact(path: Path) -> str:
    if not path.exists():
        return "no such folder"
    if path.is_file():
        return "not a graphopt artifact; `graphopt optimize` makes one of a model"
    return f"not a graphopt artifact (no {MANIFEST})"


def write_manifest(folder: Path, entries: dict[str, Any]) -> None:
    """Write `manifest.json`, the last of the files that loading needs."""
    from importlib.metadata import version  # 50 ms that serving does without

    sizes = {name: (folder / name).stat().st_size for name in (LIBRARY, WEIGHTS)}
    sums = {LIBRARY: zlib.crc32((folder / LIBRARY).read_bytes())}  # weights would take too long
    about = {"format": FORMAT, "graphopt": version("graphopt"), "files": sizes, "crc32": sums}
    (folder / MANIFEST).write_text(manifest_text({**about, **entries}))


def manifest_text(entries: dict[str, Any]) -> str:
    """`manifest.json` with these entries: text that `read_manifest` takes, as long as it stays so.

    One wrong number in it, as where a weight lies, would give wrong results without a word.
    """
    return json.dumps({**entries, CHECKSUM: _checksum(entries)}, indent=2) + "\n"


def _checksum(entries: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(entries).encode())


def obstacle(manifest: dict[str, Any]) -> str | None:
    """Why this machine cannot run the artifact that `manifest` describes; None if it can."""
    machine = manifest.get("machine")
    if machine != platform.machine():
        return f"compiled for {machine}, this machine is {platform.machine()}"
    missing = sorted(set(manifest.get("cpu_features", ())) - host_features())
    if missing:
        return (
            f"needs CPU features that this machine lacks ({', '.join(missing)}); compile it again "
            "here, or with --target cpu:x86-64-v3"
        )
    if "amx_tile" in manifest.get("cpu_features", ()) and not tiles_allowed():
        return "needs AMX, and the system does not let this process use it; compile it again here"
    gpu = manifest.get("gpu")
    return None if gpu is None else gpu_runtime.obstacle(gpu["architectures"])


def signature_to_json(signature: Signature) -> dict[str, Any]:
    """The signature as manifest entries `inputs` and `outputs`."""

    def entries(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [{"name": s.name, "dtype": s.dtype, "shape": s.shape} for s in specs]

    return {"inputs": entries(signature.inputs), "outputs": entries(signature.outputs)}


def signature_from_json(manifest: dict[str, Any]) -> Signature:
    """The signature that a manifest describes."""

    def specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(e["name"], e["dtype"], None if e["shape"] is None else tuple(e["shape"]))
            for e in entries
        )

    return Signature(specs(manifest["inputs"]), specs(manifest["outputs"]))
