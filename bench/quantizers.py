"""Other tools that quantize a model after training, each at its documented best.

Each takes the source file, a place for its result and the rows that may be used for choosing. It
runs in a process of its own, because on some models one of them crashes; that it is missing, or
cannot take the model, is said in the table.
"""

from __future__ import annotations

import contextlib
import multiprocessing
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

from graphopt.accuracy.judge import Judge
from graphopt.measuring import peers
from graphopt.serving.signature import Runnable
from graphopt.targets.portable import OnnxModel

MAX_DROP = 0.001  # that NNCF's accuracy control may spend
CALIBRATION = 300  # batches at most

Quantizer = Callable[[Path, Path, Judge], None]


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """What ONNX Runtime and Intel's tool calibrate on."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.rewind()

    def rewind(self) -> None:
        self.left: Iterator[Mapping[str, np.ndarray]] = iter(self.judge.data.batches[:CALIBRATION])

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.left, None)


def onnxruntime_dynamic(source: Path, target: Path, chooser: Judge) -> None:
    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def onnxruntime_static(source: Path, target: Path, chooser: Judge) -> None:
    quantize_static(
        prepared(source, target),
        target,
        Batches(chooser),
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def prepared(source: Path, target: Path) -> Path:
    """`source` with shapes inferred, as ONNX Runtime asks for before static quantization."""
    path = target.with_suffix(".prepared")
    with contextlib.chdir(target.parent):  # where it leaves its temporary files
        quant_pre_process(source.resolve(), path)
    return path


# ------------------------------------------------------------------ Intel Neural Compressor


def neural_compressor_dynamic(source: Path, target: Path, chooser: Judge) -> None:
    quantize, config = _neural_compressor()
    quantize(str(source), str(target), config.DynamicQuantConfig(per_channel=True))


def neural_compressor_static(source: Path, target: Path, chooser: Judge) -> None:
    quantize, config = _neural_compressor()
    settings = config.StaticQuantConfig(Batches(chooser), per_channel=True)
    quantize(str(prepared(source, target)), str(target), settings)


def _neural_compressor() -> tuple[Any, Any]:
    from onnx_neural_compressor.quantization import config, quantize

    return quantize, config


# ------------------------------------------------------------------ OpenVINO's NNCF


class OpenVinoModel:
    """A network in OpenVINO, float32 where it is not quantized, with an artifact's interface."""

    def __init__(self, compiled: Any, path: Path | None = None) -> None:
        # NNCF's networks call an output by more names than one.
        self.names = [sorted(output.get_names()) for output in compiled.outputs]
        self.request, self.path = compiled.create_infer_request(), path

    @staticmethod
    def of(path: Path) -> OpenVinoModel:
        import openvino as ov

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        return OpenVinoModel(ov.Core().compile_model(path, "CPU", settings), path)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        self.request.infer(dict(feeds), share_inputs=True)
        tensors = [self.request.get_output_tensor(k).data for k in range(len(self.names))]
        return {name: t.copy() for names, t in zip(self.names, tensors) for name in names}


def call(model: Any, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """One inference to time; OpenVINO has its shapes fixed and its tensors bound before."""
    if isinstance(model, OpenVinoModel):
        peer = peers.find("openvino")[0]
        assert model.path is not None
        return peers.bind(peers.open_peer(peer, model.path), feeds)
    return lambda: model.run(feeds)


def nncf_accuracy_control(source: Path, target: Path, chooser: Judge) -> None:
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


def quantized(name: str, source: Path, target: Path, chooser: Judge) -> Runnable:
    """What a tool makes of a model, ready to run on one thread.

    Raises:
        RuntimeError: why there is nothing to run.
    """
    context = multiprocessing.get_context("fork")
    says: Any = context.SimpleQueue()
    child = context.Process(target=_quantize, args=(name, source, target, chooser, says))
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(says.get() if not says.empty() else f"it died ({child.exitcode})")
    return _loaded(target)


def _loaded(target: Path) -> Runnable:
    network = target.with_suffix(".xml")
    return OpenVinoModel.of(network) if network.exists() else OnnxModel(target)


def _quantize(name: str, source: Path, target: Path, chooser: Judge, says: Any) -> None:
    try:
        QUANTIZERS[name](source, target, chooser)
        _loaded(target).run(chooser.data.batches[0])
    except Exception as error:  # whatever they raise
        says.put(f"{type(error).__name__} {error}".splitlines()[0][:200])
        raise SystemExit(1) from None
