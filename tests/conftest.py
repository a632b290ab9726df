"""Options and fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine fails no test.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "ctr" / "model.onnx"


def shared_models() -> Path | None:
    """Real models that are not part of the project, where there are any.

    `GRAPHOPT_MODELS` names their folder; the default is `../shared/models` beside the project.
    """
    folder = Path(os.environ.get("GRAPHOPT_MODELS", ROOT.parent / "shared" / "models"))
    return folder if folder.is_dir() else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of real models; skips where it is absent."""
    folder = shared_models()
    if folder is None:
        pytest.skip("no folder of real models (set GRAPHOPT_MODELS)")
    return folder


@pytest.fixture(scope="session")
def example() -> Path:
    """The model that ships with the project."""
    return EXAMPLE
