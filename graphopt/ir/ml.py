"""Stages of classical pipelines (`ai.onnx.ml`) in the terms of standard ONNX.

As scikit-learn, LightGBM and XGBoost are exported: scalers, encoders and linear models become what
they compute, as ONNX Runtime does it; an ensemble of trees that classifies becomes one of trees
that add up scores, and what is made of the scores. A call on text, or with options that no exporter
writes, stays as it is, for engines that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.ir.contrib_steps import Steps
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType, dtype_to_onnx
from graphopt.ir.upgrade import OpCall

DOMAIN = "ai.onnx.ml"
_FLOAT, _INT64 = dtype_to_onnx("float32"), dtype_to_onnx("int64")
_MAX_COMPARED = 512  # keys that are compared one by one
_MAX_SPAN = 1 << 16  # of whole numbers that a table of all of them may have

_TRANSFORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "NONE": ("", {}),
    "LOGISTIC": ("Sigmoid", {}),
    "SOFTMAX": ("Softmax", {"axis": -1}),
}

Adapter = Callable[[Steps, dict[str, Any]], "Value | Sequence[Value] | None"]


def standard(graph: Graph, call: OpCall) -> Sequence[Value] | None:
    """Insert what `call`, which fits its schema, computes; None where it stays as it is."""
    adapter = _ADAPTERS.get(call.op_type)
    if call.domain != DOMAIN or adapter is None:
        return None
    if any(v is None or not isinstance(v.type, TensorType) for v in call.inputs):
        return None
    if any(v.type.dtype == "string" or v.rank is None for v in call.inputs):  # type: ignore
        return None
    made = adapter(Steps(graph, call), dict(call.attrs))
    return [made] if isinstance(made, Value) else made


def _floats(do: Steps, slot: int = 0) -> Value:
    x = do.value(slot)
    return x if x.dtype == "float32" else do("Cast", x, to=_FLOAT)


def _array(do: Steps, values: Any, dtype: Any = np.float32) -> Value:
    return do.graph.constant(np.asarray(values, dtype))


def _scaler(do: Steps, attrs: dict[str, Any]) -> Value:
    x = _floats(do)
    shifted = do("Sub", x, _array(do, attrs["offset"])) if "offset" in attrs else x
    return do("Mul", shifted, _array(do, attrs["scale"])) if "scale" in attrs else shifted


def _normalizer(do: Steps, attrs: dict[str, Any]) -> Value | None:
    x, kind = _floats(do), attrs.get("norm", "MAX")
    reduction = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}.get(kind)
    if reduction is None or x.rank not in (1, 2):
        return None
    norm = do(reduction, x, _array(do, [-1], np.int64))
    zero, one = do.number(0, x), do.number(1, x)
    return do("Div", x, do("Where", do("Equal", norm, zero), one, norm))


def _linear(do: Steps, attrs: dict[str, Any], rows: int) -> Value | None:
    """`rows` weighted sums of the features of each sample."""
    x, weights = _floats(do), np.asarray(attrs["coefficients"], np.float32)
    if x.rank != 2 or rows < 1 or weights.size % rows:
        return None
    columns = _array(do, np.ascontiguousarray(weights.reshape(rows, -1).T))
    intercepts = attrs.get("intercepts")
    bias = [] if intercepts is None else [_array(do, intercepts)]
    return do("Gemm", x, columns, *bias)


def _transformed(do: Steps, scores: Value, kind: str) -> Value:
    """`scores` after one of `_TRANSFORMS`."""
    op, attrs = _TRANSFORMS[kind]
    return do(op, scores, **attrs) if op else scores


def _linear_regressor(do: Steps, attrs: dict[str, Any]) -> Value | None:
    kind = attrs.get("post_transform", "NONE")
    scores = _linear(do, attrs, attrs.get("targets", 1)) if kind in _TRANSFORMS else None
    return None if scores is None else _transformed(do, scores, kind)


def _linear_classifier(do: Steps, attrs: dict[str, Any]) -> Sequence[Value] | None:
    labels, kind = attrs.get("classlabels_ints") or [], attrs.get("post_transform", "NONE")
    rows = len(attrs.get("intercepts", labels))
    if len(labels) < 2 or rows != len(labels) or kind not in _TRANSFORMS:
        return None
    scores = _linear(do, attrs, len(labels))
    return None if scores is None else [_best(do, scores, labels), _transformed(do, scores, kind)]


def _best(do: Steps, scores: Value, labels: Sequence[int]) -> Value:
    """The label of the greatest score, the first of equals."""
    place = do("ArgMax", scores, axis=-1, keepdims=0)
    return do("Gather", _array(do, labels, np.int64), place)


def _imputer(do: Steps, attrs: dict[str, Any]) -> Value | None:
    x = do.value(0)
    kind = "int64s" if x.dtype == "int64" else "floats"
    given = attrs.get(f"imputed_value_{kind}")
    if given is None or x.dtype not in ("float32", "int64"):
        return None
    missing = attrs.get(f"replaced_value_{kind[:-1]}", 0)
    lacks = do("IsNaN", x) if missing != missing else do("Equal", x, do.number(missing, x))
    return do("Where", lacks, _array(do, given, np.dtype(x.dtype)), x)


def _binarizer(do: Steps, attrs: dict[str, Any]) -> Value | None:
    x = do.value(0)
    if x.dtype != "float32":
        return None
    above = do("Greater", x, do.number(attrs.get("threshold", 0.0), x))
    return do("Cast", above, to=_FLOAT)


def _feature_vectorizer(do: Steps, attrs: dict[str, Any]) -> Value | None:
    inputs = [do.value(slot) for slot in range(len(do.call.inputs))]
    widths = [v.shape[1] if v.shape is not None and len(v.shape) == 2 else None for v in inputs]
    if None in widths or list(attrs.get("inputdimensions", widths)) != widths:
        return None
    return do("Concat", *(_floats(do, slot) for slot in range(len(inputs))), axis=1)


def _array_feature_extractor(do: Steps, attrs: dict[str, Any]) -> Value:
    x, places = do.value(0), do("Reshape", do.value(1), _array(do, [-1], np.int64))
    taken = do("Gather", x, places, axis=-1)
    return do("Unsqueeze", taken, _array(do, [0], np.int64)) if x.rank == 1 else taken


def _one_hot_encoder(do: Steps, attrs: dict[str, Any]) -> Value | None:
    categories = attrs.get("cats_int64s")
    if not categories:
        return None
    x = do.value(0)
    ids = x if x.dtype == "int64" else do("Cast", x, to=_INT64)
    same = _equal_to(do, ids, np.asarray(categories, np.int64))
    if attrs.get("zeros", 1):
        return do("Cast", same, to=_FLOAT)
    # A category that is not known is an error, as an id outside its table is.
    size = len(categories)
    place = _first(do, same, _array(do, size, np.int64))
    return do("Gather", _array(do, np.eye(size)), place)


def _equal_to(do: Steps, x: Value, keys: np.ndarray) -> Value:
    return do("Equal", do("Unsqueeze", x, _array(do, [-1], np.int64)), _array(do, keys, keys.dtype))


def _first(do: Steps, same: Value, otherwise: Value) -> Value:
    """Where along the last axis the first True is; `otherwise` where there is none."""
    numbers = do("Cast", same, to=dtype_to_onnx("int32"))
    found = do("ReduceMax", numbers, _array(do, [-1], np.int64), keepdims=0)
    place = do("ArgMax", numbers, axis=-1, keepdims=0)
    return do("Where", do("Cast", found, to=dtype_to_onnx("bool")), place, otherwise)


def _label_encoder(do: Steps, attrs: dict[str, Any]) -> Value | None:
    x = do.value(0)
    keys, values, default = (_numbers(attrs, name) for name in ("keys", "values", "default"))
    if keys is None or values is None or len(keys) != len(values) or not len(keys):
        return None
    if str(keys.dtype) != x.dtype or (keys != keys).any() or len(np.unique(keys)) < len(keys):
        return None
    if default is None:
        default = np.array([-1 if values.dtype == np.int64 else -0.0], values.dtype)
    low = keys.min()
    if keys.dtype == np.int64 and int(keys.max()) - int(low) < max(_MAX_SPAN, 4 * len(keys)):
        table = np.full(int(keys.max()) - int(low) + 2, default.item(), values.dtype)
        table[keys - low] = values
        inside = do(
            "And",
            do("GreaterOrEqual", x, do.number(low, x)),
            do("LessOrEqual", x, do.number(keys.max(), x)),
        )
        near = do("Sub", do("Where", inside, x, do.number(low, x)), do.number(low, x))
        place = do("Where", inside, near, _array(do, len(table) - 1, np.int64))
        return do("Gather", _array(do, table, values.dtype), place)
    if len(keys) > _MAX_COMPARED:
        return None
    table = np.append(values, default.astype(values.dtype))
    place = _first(do, _equal_to(do, x, keys), _array(do, len(keys), np.int64))
    return do("Gather", _array(do, table, values.dtype), place)


def _numbers(attrs: dict[str, Any], name: str) -> np.ndarray | None:
    """An attribute given as whole numbers or floats, in one of the forms of its versions."""
    for suffix, dtype in (("int64", np.int64), ("float", np.float32)):
        for key in (f"{name}_{suffix}s", f"{name}_{suffix}"):
            if key in attrs:
                return np.atleast_1d(np.asarray(attrs[key], dtype))
    return None


def _tree_classifier(do: Steps, attrs: dict[str, Any]) -> Sequence[Value] | None:
    """Scores of trees, and the label that they speak for.

    Of two classes, trees score one alone: above a half (of votes) or above 0 it is the second. Or
    they score both, as those of CatBoost: it is class 1 where the second score is above 0. That is
    how exporters write them; ONNX Runtime has rules of its own for other forms.
    """
    labels, ids = attrs.pop("classlabels_int64s", []), attrs.pop("class_ids", [])
    weights, base = attrs.pop("class_weights", []), attrs.pop("base_values", None) or []
    kind = attrs.pop("post_transform", "NONE")
    votes, pair = min(weights, default=0) >= 0, len(labels) == 2 and set(ids) == {0, 1}
    single = len(labels) == 2 and not pair
    if pair:
        whole = _all_score(attrs, ids, 2)
        if list(labels) != [0, 1] or len(base) or not whole or kind not in _TRANSFORMS:
            return None
    elif single:
        allowed = ("NONE",) if votes else ("NONE", "LOGISTIC")
        if set(ids) != {0} or len(base) > 1 or kind not in allowed:
            return None
    elif len(labels) < 3 or not _all_score(attrs, ids, len(labels)) or kind not in _TRANSFORMS:
        return None
    attrs |= {f"target_{name}": attrs.pop(f"class_{name}") for name in ("nodeids", "treeids")}
    attrs |= {"target_ids": ids, "target_weights": weights}
    attrs["n_targets"] = 1 if single else len(labels)
    trees = do.graph.insert(
        "TreeEnsembleRegressor", do.call.inputs, attrs, domain=DOMAIN, origin=do.call.origin
    )
    scores = do("Add", trees.outputs[0], _array(do, base)) if len(base) else trees.outputs[0]
    if single:
        return _of_one_score(do, scores, labels, votes, kind)
    if pair:
        second = do("Gather", scores, _array(do, 1, np.int64), axis=1)
        above = do("Greater", second, do.number(0.0, scores))
        return [_label(do, above, labels), _transformed(do, scores, kind)]
    return [_best(do, scores, labels), _transformed(do, scores, kind)]


def _all_score(attrs: dict[str, Any], ids: Sequence[int], classes: int) -> bool:
    """True if each class has a tree all of whose leaves score it."""
    leaves: dict[int, int] = {}
    for tree, mode in zip(attrs.get("nodes_treeids", ()), attrs.get("nodes_modes", ())):
        leaves[tree] = leaves.get(tree, 0) + (mode in ("LEAF", b"LEAF"))
    scored: dict[tuple[int, int], set[int]] = {}
    for tree, node, index in zip(
        attrs.get("class_treeids", ()), attrs.get("class_nodeids", ()), ids
    ):
        scored.setdefault((tree, index), set()).add(node)
    full = {index for (tree, index), nodes in scored.items() if len(nodes) == leaves.get(tree)}
    return full == set(ids) == set(range(classes))


def _of_one_score(
    do: Steps, score: Value, labels: Sequence[int], votes: bool, kind: str
) -> Sequence[Value]:
    limit = do.number(0.5 if votes else 0.0, score)
    above = do("Squeeze", do("Greater", score, limit), _array(do, [1], np.int64))
    other = do("Sub", do.number(1, score), score) if votes else do("Neg", score)
    both = do("Concat", other, score, axis=1)
    return [_label(do, above, labels), do("Sigmoid", both) if kind == "LOGISTIC" else both]


def _label(do: Steps, second: Value, labels: Sequence[int]) -> Value:
    first, other = (_array(do, label, np.int64) for label in labels)
    return do("Where", second, other, first)


_ADAPTERS: dict[str, Adapter] = {
    "ArrayFeatureExtractor": _array_feature_extractor,
    "Binarizer": _binarizer,
    "FeatureVectorizer": _feature_vectorizer,
    "Imputer": _imputer,
    "LabelEncoder": _label_encoder,
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "Normalizer": _normalizer,
    "OneHotEncoder": _one_hot_encoder,
    "Scaler": _scaler,
    "TreeEnsembleClassifier": _tree_classifier,
}
