"""Other engines that run the same model, at the best settings known for one thread.

A peer is opened once for a model and then bound to the inputs of each measurement. Whatever can be
done before the call that is measured is done then: shapes are fixed, tensors bound without a copy.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import SpecError

PATIENCE = 2.0  # seconds

Feeds = Mapping[str, np.ndarray]
Bound = Callable[[], "list[np.ndarray]"]
"""One inference; gives the outputs in order."""


class Unavailable(Exception):
    """A peer cannot take part; the message says why."""


@dataclass(frozen=True)
class Peer:
    """One engine with one choice of settings.

    Attributes:
        name: as results are labelled.
        package: what must be installed.
        precision: what it computes in, "fp32" or "bf16".
        open: takes a model file; returns what binds it to inputs.
    """

    name: str
    package: str
    precision: str
    open: Callable[[Path], Callable[[Feeds], Bound]]


def find(engines: str, others: Mapping[str, tuple[Peer, ...]] | None = None) -> list[Peer]:
    """The peers for engine names separated by commas; each engine may stand for several settings.

    Args:
        others: engines of the caller's own.

    Raises:
        SpecError: an engine is not known.
    """
    known = {**ENGINES, **(others or {})}
    names = [name.strip() for name in engines.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise SpecError(f"no peer is called {name!r}; there are: {', '.join(known)}")
    return [peer for name in dict.fromkeys(names) for peer in known[name]]


def open_peer(peer: Peer, model: Path) -> Callable[[Feeds], Bound]:
    """`peer` with `model` loaded.

    Raises:
        Unavailable: its package is missing, or it refuses the model.
    """
    if importlib.util.find_spec(peer.package) is None:
        raise Unavailable(f"{peer.package} is not installed; try: pip install {peer.package}")
    return _explained(lambda: peer.open(model))


def bind(opened: Callable[[Feeds], Bound], feeds: Feeds) -> Bound:
    """One inference of an opened peer on `feeds`, tried twice.

    Raises:
        Unavailable: it cannot run on them, or takes more than `PATIENCE`.
    """
    bound = _explained(lambda: opened(feeds))
    _explained(bound)  # some compile during the first call
    start = time.perf_counter()
    _explained(bound)
    taken = time.perf_counter() - start
    if taken > PATIENCE:
        raise Unavailable(f"takes {taken:.1f} s a call")
    return bound


def _explained(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except Unavailable:
        raise
    except Exception as error:  # engines raise whatever they like
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unavailable(f"refuses the model: {text}") from None


# ------------------------------------------------------------------ ONNX Runtime


def _session(model: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _onnxruntime(model: Path) -> Callable[[Feeds], Bound]:
    session = _session(model)
    return lambda feeds: lambda: list(session.run(None, dict(feeds)))


def _onnxruntime_bound(model: Path) -> Callable[[Feeds], Bound]:
    session = _session(model)

    def bound(feeds: Feeds) -> Bound:
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.asarray(array, order="C"))
        for output in session.get_outputs():
            binding.bind_output(output.name, "cpu")

        def run() -> list[np.ndarray]:
            session.run_with_iobinding(binding)
            return list(binding.copy_outputs_to_cpu())

        return run

    return bound


# ------------------------------------------------------------------ OpenVINO


def _openvino(precision: str) -> Callable[[Path], Callable[[Feeds], Bound]]:
    def opened(model: Path) -> Callable[[Feeds], Bound]:
        import openvino as ov

        core = ov.Core()
        core.set_property({"CACHE_DIR": ""})
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }

        def bound(feeds: Feeds) -> Bound:
            network = _of_shapes(core, model, feeds)
            request = core.compile_model(network, "CPU", settings).create_infer_request()
            for name, array in feeds.items():
                tensor = ov.Tensor(np.asarray(array, order="C"), shared_memory=True)
                request.set_tensor(name, tensor)
            outputs = range(len(network.outputs))

            def run() -> list[np.ndarray]:
                request.infer()
                return [request.get_output_tensor(k).data for k in outputs]

            return run

        return bound

    return opened


def _of_shapes(core: Any, model: Path, feeds: Feeds) -> Any:
    """The model for exactly these shapes, or for any where OpenVINO cannot fix them."""
    network = core.read_model(model)
    try:
        network.reshape({name: array.shape for name, array in feeds.items()})
    except RuntimeError:
        return core.read_model(model)
    return network


ENGINES: Mapping[str, tuple[Peer, ...]] = {
    "onnxruntime": (
        Peer("onnxruntime", "onnxruntime", "fp32", _onnxruntime),
        Peer("onnxruntime-bound", "onnxruntime", "fp32", _onnxruntime_bound),
    ),
    "openvino": (
        Peer("openvino", "openvino", "fp32", _openvino("f32")),
        Peer("openvino-bf16", "openvino", "bf16", _openvino("bf16")),
    ),
}
