"""Bytes of a vLLM engine on one of its devices: weights, key-value cache, and what else it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.planner.activations import FLOAT32, ITEM_BYTES
from cluster.planner.gpu_kinds import DRIVER_BYTES, GIB
from cluster.planner.shape import ModelShape
from cluster.planner.trainable import adapter_numel
from common.config import EngineOptions, Lora, Model, Rollout
from common.config.rollout import BATCHED_TOKENS
from common.push.adapter import pushes_adapter

FP8 = "fp8"
GRAPH_BYTES = GIB
"""CUDA graphs; none with enforce_eager."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """An engine, per device.

    Attributes:
        weights, working, kv_cache: bytes.
        token_bytes: of the cache, for one token.
        full_sequences: of `model.max_length` tokens that the cache holds.
    """

    weights: float
    working: float
    kv_cache: float
    token_bytes: float
    full_sequences: float


def sampling(
    model: Model,
    rollout: Rollout,
    shape: ModelShape,
    memory: float | None,
) -> Sampling:
    """The engine of a model.

    Args:
        memory: bytes of its GPU, or its share of one; None on a CPU or where the kind is not known.
    """
    options = rollout.engine
    split = options.tensor_parallel_size
    weights = engine_weight_bytes(model, rollout, shape) / split
    token_bytes = kv_token_bytes(shape, cache_dtype(model, options), split)
    working = _working_bytes(model, rollout, shape)
    kv_cache = float(options.kv_cache_bytes)
    if not kv_cache and memory is not None:
        # What its share leaves. Nothing is left when this is negative.
        others = weights + working + DRIVER_BYTES
        kv_cache = options.gpu_memory_utilization * memory - others
    full_sequences = kv_cache / (token_bytes * model.max_length)
    return Sampling(weights, working, kv_cache, token_bytes, full_sequences)


def engine_weight_bytes(
    model: Model,
    rollout: Rollout,
    shape: ModelShape,
) -> float:
    """Of the whole engine: the start policy, and an adapter that it runs beside it."""
    item = ITEM_BYTES[model.dtype]
    numel = shape.numel
    if pushes_adapter(model, rollout):
        assert isinstance(model.tuning, Lora)
        numel += adapter_numel(model.tuning, shape)
    return float(numel * item)


def cache_dtype(
    model: Model,
    options: EngineOptions,
) -> str:
    """Of keys and values in the cache."""
    if options.kv_cache_dtype == "auto":
        return model.dtype
    return options.kv_cache_dtype


def kv_token_bytes(
    shape: ModelShape,
    dtype: str,
    split: int = 1,
) -> float:
    """Bytes of a token's keys and values on one of `split` devices; a head of keys is never split."""
    text = shape.text
    heads = max(1, text.kv_heads / split)
    item = 1 if dtype.startswith(FP8) else ITEM_BYTES[dtype]
    return 2 * text.layers * heads * text.head_width * item


def _working_bytes(
    model: Model,
    rollout: Rollout,
    shape: ModelShape,
) -> float:
    """Activations of one engine step, logits in float32 twice, CUDA graphs."""
    item = ITEM_BYTES[model.dtype]
    options = rollout.engine
    text = shape.text
    tokens = options.tokens_per_step(model.max_length, bool(rollout.num_gpus))
    if not rollout.num_gpus:
        # A CPU engine may take all sequences in one step, and seldom does.
        tokens = min(tokens, BATCHED_TOKENS)
    inner = 2 * text.inner / options.tensor_parallel_size
    states = tokens * (4 * text.width + inner) * item
    logits = 2 * options.max_num_seqs * shape.vocabulary * FLOAT32
    graphs = 0 if options.enforce_eager else GRAPH_BYTES
    return states + logits + graphs
