"""Other tools that quantize a model after training, each at its documented best.

Each takes the source file, a place for its result and the rows that may be used for choosing; and
gives the result, ready to run on one thread. Nothing of them is imported before it is used: one
that is missing, or that cannot take the model, raises, and the table says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from graphopt import peers
from graphopt.accuracy.judge import Judge, Runnable
from graphopt.targets.portable import OnnxModel

MAX_DROP = 0.001  # that NNCF's accuracy control may spend
CALIBRATION = 300  # batches at most

Quantizer = Callable[[Path, Path, Judge], Runnable]


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """What ONNX Runtime and Intel's tool calibrate on."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.rewind()

    def rewind(self) -> None:
        self.left: Iterator[Mapping[str, np.ndarray]] = iter(self.judge.data.batches[:CALIBRATION])

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.left, None)


def onnxruntime_dynamic(source: Path, target: Path, chooser: Judge) -> Runnable:
    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
    return OnnxModel(target)


def onnxruntime_static(source: Path, target: Path, chooser: Judge) -> Runnable:
    quantize_static(
        prepared(source, target),
        target,
        Batches(chooser),
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    return OnnxModel(target)


def prepared(source: Path, target: Path) -> Path:
    """`source` with shapes inferred, as ONNX Runtime asks for before static quantization."""
    path = target.with_suffix(".prepared")
    with contextlib.chdir(target.parent):  # where it leaves its temporary files
        quant_pre_process(source.resolve(), path)
    return path


# ------------------------------------------------------------------ Intel Neural Compressor


def neural_compressor_dynamic(source: Path, target: Path, chooser: Judge) -> Runnable:
    quantize, config = _neural_compressor()
    quantize(str(source), str(target), config.DynamicQuantConfig(per_channel=True))
    return OnnxModel(target)


def neural_compressor_static(source: Path, target: Path, chooser: Judge) -> Runnable:
    quantize, config = _neural_compressor()
    settings = config.StaticQuantConfig(Batches(chooser), per_channel=True)
    quantize(str(prepared(source, target)), str(target), settings)
    return OnnxModel(target)


def _neural_compressor() -> tuple[Any, Any]:
    from onnx_neural_compressor.quantization import config, quantize

    return quantize, config


# ------------------------------------------------------------------ OpenVINO's NNCF


class OpenVinoModel:
    """A network in OpenVINO, float32 where it is not quantized, with an artifact's interface."""

    def __init__(self, compiled: Any, path: Path | None = None) -> None:
        self.names = [output.get_any_name() for output in compiled.outputs]
        self.request, self.path = compiled.create_infer_request(), path

    @staticmethod
    def of(path: Path) -> OpenVinoModel:
        import openvino as ov

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        return OpenVinoModel(ov.Core().compile_model(path, "CPU", settings), path)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        self.request.infer(dict(feeds), share_inputs=True)
        tensors = [self.request.get_output_tensor(k).data for k in range(len(self.names))]
        return {name: tensor.copy() for name, tensor in zip(self.names, tensors)}


def call(model: Any, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """One inference to time; OpenVINO has its shapes fixed and its tensors bound before."""
    if isinstance(model, OpenVinoModel):
        peer = peers.find("openvino")[0]
        return peers.bind(peer, peers.open_peer(peer, model.path), feeds)  # type: ignore[arg-type]
    return lambda: model.run(feeds)


def nncf_accuracy_control(source: Path, target: Path, chooser: Judge) -> Runnable:
    import nncf
    import openvino as ov

    data = nncf.Dataset([dict(batch) for batch in chooser.data.batches[:CALIBRATION]])
    quantized = nncf.quantize_with_accuracy_control(
        ov.Core().read_model(source),
        calibration_dataset=data,
        validation_dataset=data,
        # Of the original this is 1, so that the difference is the drop of any metric.
        validation_fn=lambda compiled, _: 1 - chooser.drop(OpenVinoModel(compiled)),
        max_drop=MAX_DROP,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=CALIBRATION,
    )
    ov.save_model(quantized, target.with_suffix(".xml"), compress_to_fp16=False)
    return OpenVinoModel.of(target.with_suffix(".xml"))


def openvino_full(source: Path) -> Runnable | None:
    """The source in OpenVINO, to compare with what NNCF makes of it; None if it cannot."""
    try:
        return OpenVinoModel.of(source)
    except (ImportError, RuntimeError):
        return None


QUANTIZERS: Mapping[str, Quantizer] = {
    "ORT dynamic": onnxruntime_dynamic,
    "ORT static": onnxruntime_static,
    "INC dynamic": neural_compressor_dynamic,
    "INC static": neural_compressor_static,
    "NNCF": nncf_accuracy_control,
}
