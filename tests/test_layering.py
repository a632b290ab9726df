"""Imports point one way, and heavy libraries are imported only where they belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOMES = {"graphopt": "graphopt", "passes": "graphopt.passes", "targets": "graphopt.targets"}

# What each layer may import of the others; anything may import `errors`.
MAY_IMPORT = {
    "errors": set(),
    "ir": {"ops"},
    "ops": {"ir"},
    "rewrite": {"ir"},
    "analysis": {"ir", "ops"},
    "pipeline": {"ir", "rewrite", "analysis", "passes"},
    "passes": {"ir", "ops", "rewrite", "analysis", "pipeline"},
    "accuracy": {
        "analysis",
        "arrays",
        "ir",
        "latency",
        "pipeline",
        "serving.signature",
        "targets",
    },
    "machine": set(),
    "targets": {
        "ir",
        "ops",
        "analysis",
        "rewrite",
        "latency",
        "machine",
        "serving.bridge",
        "serving.gpu_runtime",
        "serving.signature",
    },
    "latency": set(),
    "serving.signature": set(),
    "serving.bridge": set(),
    "serving.runtime": {"serving.bridge", "serving.signature"},
    "serving.gpu_runtime": {"serving.runtime", "serving.signature"},
    "serving.splitting": {"serving.runtime"},
    "serving.small_pages": set(),
    "serving.manifest": {"machine", "serving.gpu_runtime", "serving.signature"},
    "serving.bad_ids": set(),
    "serving.artifact": {
        "serving.bad_ids",
        "serving.gpu_runtime",
        "serving.manifest",
        "serving.runtime",
        "serving.signature",
        "serving.small_pages",
        "serving.splitting",
    },
    "serving.auto_engine": {"serving.artifact", "serving.manifest", "targets"},
    "serving.loading": {"ir", "serving.artifact", "serving.auto_engine"},
    "checking": {"analysis", "ir", "pipeline", "serving", "targets"},
    "deployment": {"analysis", "checking", "ir", "latency", "pipeline", "serving", "targets"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for folder, package in HOMES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(p for p in parts if p != "__init__")]), path


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0 or "kernels" in path.parts, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> str:
    """The folder or file under graphopt, and in `serving`, which has layers of its own, in that."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["serving"] else parts[:1])


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda x: str(x).split("/")[-1])
def test_imports_point_one_way(module: str, path: Path) -> None:
    own = layer(module)
    if own not in MAY_IMPORT:
        return
    for imported in imports_of(path):
        if not imported.startswith("graphopt."):
            continue
        other = layer(imported)
        allowed = MAY_IMPORT[own] | {own, "errors"}
        assert allowed & {other, other.split(".")[0]}, f"{module} imports {imported}"


def test_only_import_and_export_use_graphsurgeon() -> None:
    users = {m for m, path in modules() if any("onnx_graphsurgeon" in i for i in imports_of(path))}
    assert users == {"graphopt.ir.onnx_io", "graphopt.ir.export"}


def test_only_targets_import_tvm() -> None:
    users = {m for m, path in modules() if any(i.split(".")[0] == "tvm" for i in imports_of(path))}
    assert users
    assert all(module.startswith("graphopt.targets") for module in users), users


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_graphopt_is_light() -> None:
    assert not imported_by("import graphopt") & {"tvm", "onnxruntime", "onnx", "numpy", "typer"}


def test_help_is_light() -> None:
    heavy = {"tvm", "onnxruntime", "onnx", "numpy", "onnx_graphsurgeon", "scipy"}
    assert not imported_by("import graphopt.cli") & heavy


def test_serving_needs_no_compiler() -> None:
    heavy = {"tvm", "onnxruntime", "onnx", "onnx_graphsurgeon", "scipy", "typer"}
    assert not imported_by("from graphopt import load") & heavy


def test_compiling_needs_no_pytorch(tmp_path: Path) -> None:
    """TVM imports PyTorch wherever it is installed, which takes longer than TVM itself."""
    (tmp_path / "torch.py").touch()
    path = f"sys.path.insert(0, {str(tmp_path)!r})"
    found = imported_by(f"{path}; import graphopt.targets.cpu.target")
    assert "tvm" in found
    assert "torch" not in found


def test_packages_that_use_tvm_load_it_first() -> None:
    """Not the tuner's, whose options are read without TVM; targets alone use the rest of it."""
    users = (m for m, path in modules() if any(i.split(".")[0] == "tvm" for i in imports_of(path)))
    packages = {module.split(".")[2] for module in users} - {"compiler", "tuning"}
    assert packages >= {"cpu", "cuda", "kernels", "relax"}
    for package in packages:
        assert "compiler.load()" in (ROOT / "targets" / package / "__init__.py").read_text()


def test_no_second_copy_of_passes() -> None:
    found = imported_by("from graphopt.pipeline import registry; registry.passes()")
    assert "passes" not in found
    assert "targets" not in found


def test_no_private_function_is_left_unused() -> None:
    """Those that a decorator hands over to someone apart."""
    texts = {path: path.read_text() for _, path in modules()}
    words = Counter(word for text in texts.values() for word in re.findall(r"\w+", text))
    left = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, text in texts.items()
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list
        if node.name[0] == "_" != node.name[1] and words[node.name] < 2
    ]
    assert left == []
