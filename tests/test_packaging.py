"""The list of packages in pyproject.toml is what is on disk."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOMES = {"graphopt": "graphopt", "passes": "graphopt.passes", "targets": "graphopt.targets"}


def packages_on_disk() -> set[str]:
    found = set()
    for folder, package in HOMES.items():
        for module in (ROOT / folder).rglob("*.py"):
            relative = module.parent.relative_to(ROOT / folder)
            found.add(".".join([package, *relative.parts]))
    return found


def _folder(package: str) -> str:
    return package.removeprefix("graphopt.").replace(".", "/")


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["packages"]) == packages_on_disk()


def test_every_package_has_an_init() -> None:
    for folder in HOMES:
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_every_file_beside_the_code_is_listed() -> None:
    """Headers of kernels, and the mark that tells type checkers that there are types."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in (ROOT / _folder(package)).glob(pattern)
    }
    kinds = (".cuh", ".typed")
    files = {p for home in HOMES for p in (ROOT / home).rglob("*") if p.suffix in kinds}
    assert listed == files | {ROOT / "graphopt" / "py.typed"}


def test_pins_that_were_paid_for() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "apache-tvm==0.27.0.post1" in dependencies
    assert "apache-tvm-ffi==0.1.14.post1" in dependencies
