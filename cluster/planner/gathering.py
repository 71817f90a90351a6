"""Bytes of the weights that a rank has whole under ZeRO-3, where it owns a share of each.

    a forward begins      what is fetched ahead: every module asks for another piece of PREFETCH_NUMEL numbers, up to
                          LIVE_NUMEL. A piece is there twice while it is cut up into weights; before that gloo has
                          two at a time twice, since it receives them in memory of its own
    backward              what forward has used and backward will use, of the nearest LIVE_NUMEL numbers. DeepSpeed
                          knows them from the step before. With LoRA forwards with and without adapters take turns,
                          which it does not foresee: there only what is at work, and the head
    backward is through   embedding and head: no hook tells that they are no longer needed

Weights in front of all that trains take no part in backward, nor does a frozen embedding.
"""

from __future__ import annotations

from cluster.planner.activations import ITEM_BYTES
from cluster.planner.shape import ModelShape, Weight
from cluster.planner.trainable import FLOW, stage_of, trained_parts
from common.config import Lora, RunConfig

LIVE_NUMEL = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters."""
PREFETCH_NUMEL = 50_000_000
"""DeepSpeed's stage3_prefetch_bucket_size."""


def fetched_ahead(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """Where a forward begins; the head may be whole from the reference's forward before."""
    if stage_of(config) < 3:
        return 0.0
    whole = 0
    if _takes_turns(config):
        whole = _wide_numel(config, shape)
    rest = shape.numel - whole
    ahead = min(LIVE_NUMEL, rest)
    pieces = 1 if config.learner.num_gpus else 2
    twice = min(pieces * PREFETCH_NUMEL, rest)
    return _bytes(config, whole + ahead + twice)


def whole_in_backward(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """Beside activations."""
    if stage_of(config) < 3:
        return 0.0
    numels = [weight.numel for weight in _passed(config, shape)]
    if _takes_turns(config):
        return _bytes(config, _wide_numel(config, shape) + max(numels))
    live = min(sum(numels), max(LIVE_NUMEL, *numels) + PREFETCH_NUMEL)
    return _bytes(config, live)


def whole_behind_backward(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """Until the update."""
    if stage_of(config) < 3:
        return 0.0
    return _bytes(config, _wide_numel(config, shape))


def _takes_turns(config: RunConfig) -> bool:
    """Whether the reference is the policy without its adapters, and is run in every step."""
    is_lora = isinstance(config.model.tuning, Lora)
    return is_lora and config.learner.fast.reference_cache == "off"


def _passed(
    config: RunConfig,
    shape: ModelShape,
) -> list[Weight]:
    """Weights that backward goes through."""
    first = min(FLOW.index(part) for part in trained_parts(config))
    weights = shape.of_part(*FLOW[first:])
    if not isinstance(config.model.tuning, Lora):
        return weights
    return [weight for weight in weights if weight.rows or not _is_wide(weight, shape)]


def _wide_numel(
    config: RunConfig,
    shape: ModelShape,
) -> int:
    """Of the embedding and the head, as far as backward goes through them."""
    numel = 0
    for weight in _passed(config, shape):
        if _is_wide(weight, shape):
            numel += weight.numel
    return numel


def _is_wide(
    weight: Weight,
    shape: ModelShape,
) -> bool:
    return weight.numel == shape.vocabulary * shape.text.width


def _bytes(
    config: RunConfig,
    numel: int,
) -> float:
    return float(numel * ITEM_BYTES[config.model.dtype])
