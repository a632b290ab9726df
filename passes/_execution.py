"""Small models run by ONNX Runtime, on inputs that they may well refuse."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

SECONDS = 20.0
"""After this long a run counts as failed: a loop may never meet its end."""


def session(model: bytes, **config: str) -> Any:
    """An ONNX Runtime session that computes each op as it stands, in one thread, and says nothing.

    Args:
        config: entries of a session's configuration, without the `session.` of their names.

    Raises:
        Exception: of many kinds, without a base of their own: it refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, setting in config.items():
        options.add_session_config_entry(f"session.{name}", setting)
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


class Execution:
    """A model as ONNX Runtime runs it, without optimizations, in one thread.

    Attributes:
        complaint: what ONNX Runtime last said where it failed.
    """

    def __init__(self, model: bytes) -> None:
        self.complaint = ""
        self._session: Any = None
        try:
            self._session = session(model)
        except Exception as error:
            self._note(error)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The first output, None where the model cannot be run on `feeds`."""
        if self._session is None:
            return None
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        alarm = threading.Timer(SECONDS, lambda: setattr(options, "terminate", True))
        alarm.daemon = True
        alarm.start()
        try:
            return np.asarray(self._session.run(None, dict(feeds), options)[0])
        except Exception as error:
            self._note(error)
            return None
        finally:
            alarm.cancel()

    def _note(self, error: Exception) -> None:
        self.complaint = " ".join(str(error).split())[:200]
