"""Measures whether the compiled code of an artifact is faster than ONNX Runtime, and records it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.checking.feeds import random_feeds
from graphopt.errors import InputError
from graphopt.ir import onnx_io
from graphopt.ir.atomic import replacing
from graphopt.latency import interleaved
from graphopt.serving.artifact import Artifact
from graphopt.serving.auto_engine import COMPILED, ONNXRUNTIME, leading_input
from graphopt.serving.manifest import MANIFEST, PORTABLE, manifest_text
from graphopt.targets.portable import OnnxModel

MARGIN = 1.05  # a smaller lead is within the noise of two medians


def record_engines(artifact: Artifact, batches: Sequence[int], seconds: float = 0.5) -> Artifact:
    """Measure an artifact at each of `batches` and write the faster engine to its manifest.

    Ids out of range must be errors (oob="error"), as they are in ONNX Runtime. A model of fixed
    batch size is measured once. ONNX Runtime must be faster by `MARGIN` to be chosen.

    Args:
        seconds: how long to measure each engine at each batch size.

    Returns:
        the artifact, loaded again.

    Raises:
        InputError: the model takes none of the batch sizes.
    """
    graph = onnx_io.load(artifact.path / PORTABLE)
    portable = OnnxModel(artifact.path / PORTABLE, signature=artifact.signature)
    rows: list[dict[str, Any]] = []
    for batch in batches if leading_input(artifact) else batches[:1]:
        try:
            (feeds, *_), _ = random_feeds(graph, portable.run, (batch,))
        except InputError:
            continue
        calls = {
            COMPILED: lambda feeds=feeds: artifact.run(feeds),
            ONNXRUNTIME: lambda feeds=feeds: portable.run(feeds),
        }
        medians = {name: taken.median for name, taken in interleaved(calls, seconds).items()}
        slower = medians[COMPILED] > MARGIN * medians[ONNXRUNTIME]
        fastest = ONNXRUNTIME if slower else COMPILED
        rows.append({"batch": batch, "fastest": fastest, "median_us": medians})
    if not rows:
        raise InputError(f"the model takes none of the batch sizes {', '.join(map(str, batches))}")
    with replacing(artifact.path / MANIFEST) as temporary:
        temporary.write_text(manifest_text({**artifact.manifest, "engines": rows}))
    return Artifact.load(artifact.path)
