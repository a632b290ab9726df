"""Optimization levels: pipelines as values, to be read from top to bottom.

`O0` does nothing. `O1` cleans up and keeps every bit of the answers. `O2` also raises loops to ops
of our own and may reorder float operations. `O3` also compresses, if there is an error budget.
"""

from __future__ import annotations

from graphopt.passes.balance_units import BalanceUnits
from graphopt.passes.bypass_concats import BypassConcats
from graphopt.passes.cancel_sorts import CancelSorts
from graphopt.passes.cancel_transposes import CancelTransposes
from graphopt.passes.canonicalize import Canonicalize
from graphopt.passes.count_steps import CountSteps
from graphopt.passes.cse import Cse
from graphopt.passes.dce import Dce
from graphopt.passes.decompose_dft import DecomposeDft
from graphopt.passes.decompose_einsum import DecomposeEinsum
from graphopt.passes.deduplicate_rows import DeduplicateRows
from graphopt.passes.distribute_layers import DistributeLayers
from graphopt.passes.drop_unit_axes import DropUnitAxes
from graphopt.passes.factorize_low_rank import FactorizeLowRank
from graphopt.passes.factorize_tables import FactorizeTables
from graphopt.passes.factorize_tensors import FactorizeTensors
from graphopt.passes.fold_affine import FoldAffine
from graphopt.passes.fold_batch_norm import FoldBatchNorm
from graphopt.passes.fold_constant_columns import FoldConstantColumns
from graphopt.passes.fold_constants import FoldConstants
from graphopt.passes.fuse_attention import FuseAttention
from graphopt.passes.fuse_bi_interaction import FuseBiInteraction
from graphopt.passes.fuse_compressed_interaction import FuseCompressedInteraction
from graphopt.passes.fuse_cross_network import FuseCrossNetwork
from graphopt.passes.fuse_dot_interaction import FuseDotInteraction
from graphopt.passes.fuse_gemm import FuseGemm
from graphopt.passes.fuse_inner_products import FuseInnerProducts
from graphopt.passes.fuse_lookups import FuseLookups
from graphopt.passes.fuse_pair_products import FusePairProducts
from graphopt.passes.hoist_repeated_columns import HoistRepeatedColumns
from graphopt.passes.hoist_selections import HoistSelections
from graphopt.passes.inline_subgraphs import InlineSubgraphs
from graphopt.passes.keep_reduced_axes import KeepReducedAxes
from graphopt.passes.mask_rows import MaskRows
from graphopt.passes.merge_embedding_bags import MergeEmbeddingBags
from graphopt.passes.merge_factors import MergeFactors
from graphopt.passes.prune_dead_units import PruneDeadUnits
from graphopt.passes.prune_heads import PruneHeads
from graphopt.passes.prune_rows import PruneRows
from graphopt.passes.prune_units import PruneUnits
from graphopt.passes.quantize_activations import QuantizeActivations
from graphopt.passes.quantize_tables import QuantizeTables
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.passes.raise_buckets import RaiseBuckets
from graphopt.passes.raise_embedding_bag import RaiseEmbeddingBag
from graphopt.passes.raise_gru import RaiseGru
from graphopt.passes.raise_layer_normalization import RaiseLayerNormalization
from graphopt.passes.raise_lookups import RaiseLookups
from graphopt.passes.raise_lstm import RaiseLstm
from graphopt.passes.raise_pooling import RaisePooling
from graphopt.passes.raise_segment_sums import RaiseSegmentSums
from graphopt.passes.reassociate import Reassociate
from graphopt.passes.remove_broadcasts import RemoveBroadcasts
from graphopt.passes.resolve_masks import ResolveMasks
from graphopt.passes.resolve_sequences import ResolveSequences
from graphopt.passes.resolve_shapes import ResolveShapes
from graphopt.passes.round_layers import RoundLayers
from graphopt.passes.settle_ranks import SettleRanks
from graphopt.passes.share_initializers import ShareInitializers
from graphopt.passes.simplify_casts import SimplifyCasts
from graphopt.passes.simplify_concats import SimplifyConcats
from graphopt.passes.simplify_gates import SimplifyGates
from graphopt.passes.simplify_reshapes import SimplifyReshapes
from graphopt.passes.simplify_slices import SimplifySlices
from graphopt.passes.sink_divisions import SinkDivisions
from graphopt.passes.sink_expands import SinkExpands
from graphopt.passes.sink_gathers import SinkGathers
from graphopt.passes.stack_sequences import StackSequences
from graphopt.passes.trim_loops import TrimLoops
from graphopt.passes.turn_layers import TurnLayers
from graphopt.passes.unflatten_gemms import UnflattenGemms
from graphopt.passes.unify_sizes import UnifySizes
from graphopt.passes.unroll_convolutions import UnrollConvolutions
from graphopt.passes.unroll_loops import UnrollLoops
from graphopt.passes.unroll_scans import UnrollScans
from graphopt.pipeline.spec import Fixpoint, Pipeline

_CLEAN_UP = (
    Dce(),
    ResolveShapes(),
    ResolveMasks(),
    InlineSubgraphs(),
    SettleRanks(),
    FoldConstants(),
    Canonicalize(),
    SimplifyCasts(),
    SimplifySlices(),  # before a Squeeze, which says that a slice has one element, is a Reshape
    SimplifyReshapes(),
    KeepReducedAxes(),
    SimplifyConcats(),
    BypassConcats(),
    RemoveBroadcasts(),
    SinkExpands(),
    ShareInitializers(),
    Cse(),
)
_UNROLL = (
    CountSteps(),
    UnrollLoops(),
    UnrollScans(),
    ResolveSequences(),
    StackSequences(),
    TrimLoops(),
)
_SEQUENCES = (
    CancelSorts(),
    MaskRows(),
    RaiseGru(),
    RaiseLstm(),
    RaiseLayerNormalization(),
    UnflattenGemms(),
    CancelTransposes(),
    HoistSelections(),
    FuseAttention(),
    DistributeLayers(),
    SimplifyGates(),
)
_FOLD_WEIGHTS = (
    FoldBatchNorm(),
    FoldAffine(),
    FoldConstantColumns(),
    PruneDeadUnits(),
    MergeFactors(),
    HoistRepeatedColumns(),
    Reassociate(),
    TurnLayers(),
    FuseGemm(),
)
_LOOK_UP = (
    RaiseBuckets(),
    RaiseSegmentSums(),
    RaiseLookups(),
    RaisePooling(),
    FuseLookups(),
    MergeEmbeddingBags(),
)
_INTERACT = (
    DecomposeDft(),
    DecomposeEinsum(),
    DropUnitAxes(),
    SinkGathers(),
    SinkDivisions(),
    FuseBiInteraction(),
    FuseCompressedInteraction(),
    FuseCrossNetwork(),
    FuseInnerProducts(),
    FuseDotInteraction(),
    FusePairProducts(),
    UnrollConvolutions(),
)

_RAISE = (*_FOLD_WEIGHTS, *_SEQUENCES, *_LOOK_UP, *_INTERACT)

O0 = Pipeline()

O1 = Pipeline((Fixpoint((*_CLEAN_UP, *_UNROLL)),))

# Bags are raised before loops are unrolled: with a static batch they are loops like any other. What
# sizes must be equal is asked again then: how long a loop's results are was not known before.
O2 = Pipeline(
    (
        RaiseEmbeddingBag(),
        Fixpoint(_CLEAN_UP),
        RaiseEmbeddingBag(),
        UnifySizes(),
        Fixpoint((*_CLEAN_UP, *_UNROLL, UnifySizes(), *_RAISE)),
    )
)

# Each takes what the budget still allows. Rows go first, if a trace tells which. Bags are merged
# where they are not in few bits by then; heads and units go before factors are made, which have
# none, and all of them before codes. What stays in float32 is rounded to bfloat16 where that is
# multiplied.
O3 = Pipeline(
    (
        *O2.steps[:-1],
        PruneRows(lookups=False),
        DeduplicateRows(lookups=False),
        QuantizeTables(lookups=False),
        *O2.steps[-1:],
        PruneRows(),
        DeduplicateRows(),
        PruneHeads(),
        PruneUnits(),
        FactorizeTensors(),
        Fixpoint((CancelTransposes(), Cse(), Dce())),
        FactorizeLowRank(),
        FactorizeTables(),
        QuantizeTables(),
        BalanceUnits(),
        QuantizeWeights(),
        QuantizeActivations(),
        RoundLayers(),
        Fixpoint((ShareInitializers(), Cse(), Dce())),
    )
)

PRESETS = {"O0": O0, "O1": O1, "O2": O2, "O3": O3}
