"""Optimization levels: pipelines as values, to be read from top to bottom."""

from __future__ import annotations

from graphopt.passes.canonicalize import Canonicalize
from graphopt.passes.dce import Dce
from graphopt.passes.fold_constants import FoldConstants
from graphopt.passes.remove_broadcasts import RemoveBroadcasts
from graphopt.passes.resolve_shapes import ResolveShapes
from graphopt.passes.simplify_concats import SimplifyConcats
from graphopt.passes.simplify_reshapes import SimplifyReshapes
from graphopt.passes.simplify_slices import SimplifySlices
from graphopt.pipeline.spec import Fixpoint, Pipeline

_CLEAN_UP = Fixpoint(
    (
        Dce(),
        ResolveShapes(),
        FoldConstants(),
        Canonicalize(),
        SimplifyReshapes(),
        SimplifySlices(),
        SimplifyConcats(),
        RemoveBroadcasts(),
    )
)

#: Nothing: the model as it was written.
O0 = Pipeline()

#: Clean-up only: the same bits from fewer ops.
O1 = Pipeline((_CLEAN_UP,))

#: O1, and float operations may be reordered.
O2 = O1

#: Everything that needs no error budget.
O3 = O2

PRESETS = {"O0": O0, "O1": O1, "O2": O2, "O3": O3}
