"""Bytes of a learner rank: weights, gradients, optimizer and reference under ZeRO, tuning and offload.

With P parameters of b bytes, T of them trained, n ranks (DeepSpeed 0.19, `learner/engines/deepspeed_engine.py`):

    stage   weights   gradients           optimizer                    kept as
    0       P b       T 4                 T 8                          float32 alone; bfloat16 runs as stage 1
    1       P b       T b                 T 12 / n                     master weights and two moments in float32
    2       P b       T b / n             T 12 / n
    3       P b / n   T b / n             T 12 / n                     parameters below PERSISTENT_NUMEL stay whole

Gradients are reduced in a bucket of BUCKET_NUMEL numbers: under stage 1 from backward until the update is done, under
stage 2 in backward alone and twice (one travels while the other is filled), under stage 3 always. Backward also has the
largest gradient whole, before it is added to others or put into the bucket, and what stage 3 gathers. The update has
its gradients in float32, T 4 / n.

Optimizer offload brings to RAM: the optimizer, T 4 / n of gradients, and from stage 2 on those in b bytes, too. Below
stage 3 also T b / n of updated weights on their way back, and a buffer of the largest gradient on each side.
4-bit weights (QLoRA): half a byte, a byte of scale for 64 of them, and 4 bytes for 256 scales (arXiv 2305.14314).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.planner.activations import FLOAT32, ITEM_BYTES
from cluster.planner.shape import ModelShape, Weight, numel_of
from common.config import Lora, RunConfig
from learner.engines.deepspeed_engine import PERSISTENT_NUMEL, overlaps

BUCKET_NUMEL = 500_000_000
"""DeepSpeed's reduce_bucket_size, which we leave as it is. On a CPU pages of it that nobody writes do not exist."""
LIVE_NUMEL = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters."""
PREFETCH_NUMEL = 50_000_000
"""DeepSpeed's stage3_prefetch_bucket_size."""
MASTER_AND_MOMENTS = 12
MOMENTS = 8
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a rank holds, in bytes: on its device, and in RAM where it is offloaded.

    Attributes:
        numel: parameters that train, of the whole model.
        device, offloaded: part -> bytes that stay.
        in_backward, in_update: bytes on the device that only one of them needs.
    """

    numel: int
    device: dict[str, float]
    offloaded: dict[str, float]
    in_backward: float
    in_update: float


def trained(
    config: RunConfig,
    shape: ModelShape,
) -> Trained:
    """Weights, gradients, optimizer state, reference and buffers of one rank."""
    numel = trained_numel(config, shape)
    device = {
        "weights": _weight_bytes(config, shape),
        "gradients": _gradient_bytes(config, numel),
        "optimizer": _optimizer_bytes(config, numel),
        "reference": _reference_bytes(config, shape),
    }
    offloaded: dict[str, float] = {}
    offload = config.learner.offload
    if stage_of(config) == 3:
        device["reduce bucket"] = _bucket_bytes(config, numel)
    if offload != "none":
        offloaded["optimizer"] = device.pop("optimizer")
        _offload_gradients(config, shape, device, offloaded)
    if offload == "params":
        for part in ("weights", "reference"):
            offloaded[part] = device.pop(part)
    return Trained(
        numel,
        device,
        offloaded,
        _backward_bytes(config, shape, numel),
        _update_bytes(config, numel),
    )


def _offload_gradients(
    config: RunConfig,
    shape: ModelShape,
    device: dict[str, float],
    offloaded: dict[str, float],
) -> None:
    """What DeepSpeed keeps in RAM for an offloaded update, and beside the gradients on the device."""
    stage = stage_of(config)
    item = ITEM_BYTES[config.model.dtype]
    share = trained_numel(config, shape) / config.learner.num_ranks
    gradients = share * FLOAT32
    if stage > 1:
        gradients += device.pop("gradients")
    if stage < 3:
        # A gradient is carried over in two buffers as large as the largest of them, one on each side.
        carried = float(_largest_trained(config, shape) * item)
        gradients += carried
        device["offload buffer"] = carried
        offloaded["updated weights"] = share * item
    offloaded["gradients"] = gradients


def trained_numel(
    config: RunConfig,
    shape: ModelShape,
) -> int:
    """Parameters that train, over all ranks."""
    model = config.model
    if isinstance(model.tuning, Lora):
        return adapter_numel(model.tuning, shape)
    if model.freeze_vision:
        return numel_of(shape.of_part("language", "projector"))
    return shape.numel


def _largest_trained(
    config: RunConfig,
    shape: ModelShape,
) -> int:
    """Elements of the largest parameter that trains."""
    model = config.model
    if isinstance(model.tuning, Lora):
        return max(adapter_numels(model.tuning, shape))
    weights: Iterable[Weight] = shape.weights
    if model.freeze_vision:
        weights = shape.of_part("language", "projector")
    return max(weight.numel for weight in weights)


def adapter_numel(
    tuning: Lora,
    shape: ModelShape,
) -> int:
    """Parameters of all adapters: r (rows + columns) a matrix."""
    return sum(adapter_numels(tuning, shape))


def adapter_numels(
    tuning: Lora,
    shape: ModelShape,
) -> list[int]:
    """Parameters of every adapter's two matrices."""
    numels: list[int] = []
    for weight in shape.lora_targets(tuning):
        numels += [tuning.r * weight.columns, tuning.r * weight.rows]
    return numels


def model_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """The model in its dtype, without adapters: of a whole push, and of an engine."""
    return float(shape.numel * ITEM_BYTES[config.model.dtype])


def stage_of(config: RunConfig) -> int:
    """The ZeRO stage as the engine runs it."""
    learner = config.learner
    if learner.engine == "torch":
        return 0
    is_bfloat16 = config.model.dtype == "bfloat16"
    return max(learner.zero_stage, int(is_bfloat16))


def start_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """RAM of a rank while it loads: what stays there, and one parameter on its way (`learner/model/streaming.py`)."""
    num_bytes = 0.0
    if config.learner.num_gpus == 0 or config.learner.offload == "params":
        num_bytes = _weight_bytes(config, shape) + _reference_bytes(config, shape)
    largest = max(weight.numel for weight in shape.weights)
    return num_bytes + largest * ITEM_BYTES[config.model.dtype]


def _weight_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    tuning = config.model.tuning
    item = ITEM_BYTES[config.model.dtype]
    adapters: list[int] = []
    if isinstance(tuning, Lora):
        adapters = adapter_numels(tuning, shape)
    if isinstance(tuning, Lora) and tuning.quantize == "nf4":
        return _nf4_bytes(shape, item) + sum(adapters) * item
    numels = adapters + [weight.numel for weight in shape.weights]
    if stage_of(config) < 3:
        return float(sum(numels) * item)
    return _split_bytes(numels, item, config.learner.num_ranks)


def _split_bytes(
    numels: Iterable[int],
    item: int,
    ranks: int,
) -> float:
    """Bytes of a rank's shares under ZeRO-3; small parameters stay whole beside their shares."""
    num_bytes = 0.0
    for numel in numels:
        share = math.ceil(numel / ranks)
        whole = numel if numel < PERSISTENT_NUMEL else 0
        num_bytes += (share + whole) * item
    return num_bytes


def _nf4_bytes(
    shape: ModelShape,
    item: int,
) -> float:
    num_bytes = 0.0
    for weight in shape.weights:
        is_quantized = weight.part == "language" and weight.rows and not weight.is_head
        num_bytes += weight.numel * (NF4_BYTES if is_quantized else item)
    return num_bytes


def _gradient_bytes(
    config: RunConfig,
    numel: int,
) -> float:
    item = ITEM_BYTES[config.model.dtype]
    ranks = config.learner.num_ranks
    stage = stage_of(config)
    if stage == 0:
        return float(numel * FLOAT32)
    return numel * item / (1 if stage == 1 else ranks)


def _optimizer_bytes(
    config: RunConfig,
    numel: int,
) -> float:
    if stage_of(config) == 0:
        return float(numel * MOMENTS)
    return numel * MASTER_AND_MOMENTS / config.learner.num_ranks


def _reference_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """A second model for full tuning; see the table in `learner/model/reference.py`.

    It counts even where cached log-probs make it needless in the end: the first time through the pairs needs it.
    """
    if isinstance(config.model.tuning, Lora):
        return 0.0
    item = ITEM_BYTES[config.model.dtype]
    learner = config.learner
    if stage_of(config) == 3 and (learner.num_ranks > 1 or learner.offload == "params"):
        numels = [weight.numel for weight in shape.weights]
        return _split_bytes(numels, item, learner.num_ranks)
    num_bytes = model_bytes(config, shape)
    if config.model.freeze_vision and stage_of(config) < 3:
        num_bytes -= _shared_tower_numel(shape) * item
    return num_bytes


def _shared_tower_numel(shape: ModelShape) -> int:
    """A tower with a projector inside of it trains, and is copied."""
    inside = any(".visual." in weight.name for weight in shape.of_part("projector"))
    return 0 if inside else numel_of(shape.of_part("vision"))


def _backward_bytes(
    config: RunConfig,
    shape: ModelShape,
    numel: int,
) -> float:
    """One gradient before it is added to others, and the buckets, or under ZeRO-3 what is gathered."""
    stage = stage_of(config)
    item = ITEM_BYTES[config.model.dtype]
    gradient = float(_largest_trained(config, shape) * item)
    if stage < 3:
        return gradient + _bucket_bytes(config, numel)
    largest = max(weight.numel for weight in shape.weights)
    live = min(shape.numel, max(LIVE_NUMEL, largest) + PREFETCH_NUMEL)
    return gradient + live * item


def _bucket_bytes(
    config: RunConfig,
    numel: int,
) -> float:
    """All buckets of gradients that are reduced."""
    stage = stage_of(config)
    if stage == 0:
        return 0.0
    bucket = BUCKET_NUMEL * (2 if overlaps(stage) else 1)
    if config.learner.num_gpus == 0:
        # Stage 1 moves gradients into it that are there already, and frees the pages that they had.
        written = 0 if stage == 1 else numel
        bucket = min(bucket, written)
    return float(bucket * ITEM_BYTES[config.model.dtype])


def _update_bytes(
    config: RunConfig,
    numel: int,
) -> float:
    """Of the optimizer, on the device where it works; and stage 1's bucket, which its gradients are still in."""
    stage = stage_of(config)
    num_bytes = _bucket_bytes(config, numel) if stage == 1 else 0.0
    if stage == 0 or config.learner.offload != "none":
        return num_bytes
    return num_bytes + numel * FLOAT32 / config.learner.num_ranks
