"""A bundle serves its artifact in a Python that has nothing else of ours."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from command import graphopt as command

import graphopt
from graphopt.deployment.bundle import ARTIFACT, bundle
from graphopt.deployment.runtime_wheel import write_wheel
from graphopt.errors import ArtifactError, OutputError
from graphopt.testing import parse

MODEL = """(int64[N] id, float[N,3] x) => (float[N,3] y) <float[9,3] table> {
    e = Gather(table, id) y = Add(e, x)
}"""
SERVE = """
import sys
sys.path[:0] = {paths!r}
import numpy as np
import graphopt
artifact = graphopt.load({artifact!r})
feeds = {{"id": np.arange(40) % 9, "x": np.ones((40, 3), np.float32)}}
np.testing.assert_array_equal(artifact.run(feeds)["y"], artifact.run(feeds, threads=2)["y"])
print(float(artifact.run(feeds)["y"].sum()), graphopt.__file__)
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "m.gopt"
    graphopt.compile(parse(MODEL), output=path)
    return path


def link_needs(site: Path) -> None:
    """Put what the runtime needs from elsewhere into `site`, without a package index."""
    for name in ("numpy", "typing_extensions"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        origin = Path(spec.origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        (site / source.name).symlink_to(source)


def test_it_serves_alone(artifact: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    link_needs(site)
    output = tmp_path / "served"
    done = command("bundle", artifact, "-o", output)
    assert done.status == 0, done.err
    code = SERVE.format(paths=[str(output), str(site)], artifact=str(output / ARTIFACT))
    served = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True
    )
    assert served.returncode == 0, served.stderr
    total, home = served.stdout.split()
    feeds = {"id": np.arange(40) % 9, "x": np.ones((40, 3), np.float32)}
    assert float(total) == float(graphopt.load(artifact).run(feeds)["y"].sum())
    assert Path(home).is_relative_to(output)
    size = sum(file.stat().st_size for file in output.rglob("*"))
    assert size < 30 << 20


def test_refusals(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists; choose another name"):
        bundle(artifact, tmp_path)
    with pytest.raises(OutputError, match="no such folder"):
        bundle(artifact, tmp_path / "a" / "b")
    with pytest.raises(ArtifactError, match="not a graphopt artifact"):
        bundle(tmp_path, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_wheel_is_installed_by_pip(artifact: Path, tmp_path: Path) -> None:
    """Into a fresh environment, from which the artifact is then served."""
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        pytest.skip("no pip here")
    made = command("bundle", "--wheel", "-o", tmp_path)
    assert made.status == 0, made.err
    (wheel,) = tmp_path.glob("graphopt_runtime-*.whl")
    assert made.out.strip() == str(wheel)
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--python", str(python), "install", *options, str(wheel)], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python3*/site-packages")
    link_needs(site)
    code = SERVE.format(paths=[], artifact=str(artifact))
    served = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    assert served.returncode == 0, served.stderr
    assert Path(served.stdout.split()[1]).is_relative_to(site)
    (about,) = site.glob("graphopt_runtime-*.dist-info")
    assert "Requires-Dist: numpy" in (about / "METADATA").read_text()
    assert any((about / "licenses" / "apache-tvm").iterdir())


def test_wheel_or_artifact(artifact: Path, tmp_path: Path) -> None:
    assert command("bundle", "-o", tmp_path / "x").status == 2
    assert command("bundle", artifact, "--wheel", "-o", tmp_path).status == 2
    with pytest.raises(OutputError, match="no such folder"):
        write_wheel(tmp_path / "a")
    assert not list(tmp_path.iterdir())
