"""What optimizing the example model changes: ranking quality and size, before and after.

graphopt optimize examples/ctr/model.onnx -o build/ctr.gopt
python examples/ctr/demo.py build/ctr.gopt
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.stats import mannwhitneyu

import graphopt
from graphopt.cli import console
from graphopt.targets.portable import OnnxModel

HERE = Path(__file__).parent


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The chance that a click outranks a non-click (the Mann-Whitney statistic)."""
    clicks, others = scores[labels == 1], scores[labels == 0]
    return float(mannwhitneyu(clicks, others).statistic / (len(clicks) * len(others)))


def size_of(path: Path) -> int:
    """Bytes of a file, or of what a serving process loads of an artifact."""
    if path.is_file():
        return path.stat().st_size
    return sum((path / name).stat().st_size for name in ("model.so", "weights.bin"))


def main(artifact: Path) -> None:
    """Print quality and size of model and artifact side by side."""
    model = HERE / "model.onnx"
    data = dict(np.load(HERE / "eval.npz"))
    labels = data.pop("label")
    compiled, original = graphopt.load(artifact), OnnxModel(model)
    before, after = original.run(data)["ctr"].ravel(), compiled.run(data)["ctr"].ravel()
    rows = [
        ("AUC", f"{auc(before, labels):.5f}", f"{auc(after, labels):.5f}"),
        ("largest difference of a score", "", f"{np.abs(before - after).max():.1e}"),
        ("size, MB", f"{size_of(model) / 1e6:.2f}", f"{size_of(artifact) / 1e6:.2f}"),
    ]
    columns = (f"{len(labels)} held-out rows", ">source in ONNX Runtime", ">graphopt")
    console.stdout().print(console.table(columns, rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
