"""Every real model: compiled, portable, at several batch sizes, against expected outputs.

The compiled one gives the bits of a row whatever the rows beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import shared_models

import graphopt
from graphopt.targets.base import find
from graphopt.targets.portable import OnnxModel

FOLDER = shared_models()
NAMES = sorted(p.parent.name for p in FOLDER.glob("*/model.onnx")) if FOLDER else []
# A different order of float32 additions moves the last digits of sums of a few hundred terms.
RTOL, ATOL = 1e-4, 1e-5

# Models whose inputs all have a row per sample; the others hold bags with offsets.
OF_ROWS = (
    "deepctr_deepfm_ml100k", "deepctr_din_ml100k", "fuxi_dcnv2_ml100k", "keras_gru_ml100k",
    "nvidia_dlrm_joint", "recbole_sasrec_ml100k", "rechub_bst_ml100k", "rechub_mmoe_ml100k",
)  # fmt: skip

pytestmark = pytest.mark.skipif(FOLDER is None, reason="no real models (set GRAPHOPT_MODELS)")


@pytest.mark.parametrize("name", NAMES)
def test_model(name: str, models: Path, tmp_path: Path) -> None:
    folder = models / name
    artifact = graphopt.compile(folder / "model.onnx", output=tmp_path / "model.gopt")
    portable = OnnxModel(tmp_path / "model.gopt" / "model.onnx")
    onnx.checker.check_model(str(portable.path), full_check=True)
    batches = sorted(folder.glob("inputs_b*.npz"))
    assert batches
    for inputs in batches:
        feeds = dict(np.load(inputs))
        expected = dict(np.load(inputs.with_name(inputs.name.replace("inputs", "expected"))))
        for engine in (artifact, portable):
            found = engine.run(feeds)
            assert found.keys() == expected.keys()
            for output, array in expected.items():
                np.testing.assert_allclose(found[output], array, RTOL, ATOL, err_msg=inputs.name)
    report = json.loads((tmp_path / "model.gopt" / "report.json").read_text())
    assert report["verification"]["agrees"] is True
    if name in OF_ROWS:
        feeds = dict(np.load(folder / "inputs_b64.npz"))
        together = artifact.run(feeds)
        for rows in (slice(0, 1), slice(9, 10), slice(3, 10), slice(16, 47)):
            part = {key: np.ascontiguousarray(array[rows]) for key, array in feeds.items()}
            for output, found in artifact.run(part).items():
                np.testing.assert_array_equal(found, together[output][rows])


@pytest.mark.parametrize("name", NAMES)
def test_in_bfloat16(name: str, models: Path, tmp_path: Path) -> None:
    """Compiled for this CPU, and verified, if it multiplies bfloat16; else for one with AMX."""
    here = "cpu" if find("cpu").multiplies_bfloat16 else "cpu:sapphirerapids"
    model = models / name / "model.onnx"
    artifact = graphopt.compile(model, here, output=tmp_path / "model.gopt", precision="bf16")
    assert artifact.manifest["precision"] == "bf16"
    report = json.loads((tmp_path / "model.gopt" / "report.json").read_text())
    assert here != "cpu" or report["verification"]["agrees"] is True
