"""Bytes of a learner rank: weights, gradients, optimizer and reference under ZeRO, tuning and offload.

With P parameters of b bytes, T of them trained, n ranks (DeepSpeed 0.19, `learner/engines/deepspeed_engine.py`):

    stage   weights   gradients           optimizer                    kept as
    0       P b       T 4                 T 8                          float32 alone; bfloat16 runs as stage 1
    1       P b       T b                 T 12 / n                     master weights and two moments in float32
    2       P b       T b / n             T 12 / n
    3       P b / n   T b / n             T 12 / n                     parameters below PERSISTENT_NUMEL stay whole

What backward and the update need beside it: `moments.py`. ZeRO-3 puts hooks on every module, and methods on every
parameter: Python objects, in RAM.

Optimizer offload brings to RAM: the optimizer, T 4 / n of gradients, and from stage 2 on those in b bytes, too. Below
stage 3 also T b / n of updated weights on their way back, and a buffer of the largest gradient on each side.
4-bit weights (QLoRA): half a byte, a byte of scale for 64 of them, and 4 bytes for 256 scales (arXiv 2305.14314).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.planner.activations import FLOAT32, ITEM_BYTES
from cluster.planner.moments import (
    bucket_bytes,
    bytes_with_activations,
    bytes_without_activations,
)
from cluster.planner.shape import ModelShape, numel_of
from cluster.planner.trainable import (
    adapter_numels,
    largest_trained,
    stage_of,
    trained_numel,
)
from common.config import Lora, RunConfig
from learner.engines.deepspeed_engine import PERSISTENT_NUMEL, splits_reference

HOOKS_OF_MODULE = 20_000
"""Bytes of what DeepSpeed makes for one module: four classes, and the functions in them (measured apart from a run)."""
METHODS_OF_PARAMETER = 7_000
"""Bytes of the functions that DeepSpeed makes for one parameter (measured apart from a run)."""
MODULES_OF_ADAPTER = 10
"""peft's wrapper; dropout and two matrices, in a dictionary each; three empty dictionaries."""
MASTER_AND_MOMENTS = 12
MOMENTS = 8
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a rank holds, in bytes: on its device, and beside it in RAM.

    Attributes:
        numel: parameters that train, of the whole model.
        device, offloaded: part -> bytes that stay.
        hooks: ZeRO-3's, in RAM.
        with_activations, without_activations: bytes on the device that are needed for a while (`moments.py`).
    """

    numel: int
    device: dict[str, float]
    offloaded: dict[str, float]
    hooks: float
    with_activations: float
    without_activations: float


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
        device["reduce bucket"] = bucket_bytes(config, numel)
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
        _hook_bytes(config, shape),
        bytes_with_activations(config, shape),
        bytes_without_activations(config, shape),
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
        carried = float(largest_trained(config, shape) * item)
        gradients += carried
        device["offload buffer"] = carried
        offloaded["updated weights"] = share * item
    offloaded["gradients"] = gradients


def model_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """The model in its dtype, without adapters: of a whole push, and of an engine."""
    return float(shape.numel * ITEM_BYTES[config.model.dtype])


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
    if tuning.is_quantized:
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
    if splits_reference(learner, learner.num_ranks):
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


def _hook_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """Of the policy, and of a reference that is split up as well."""
    if stage_of(config) < 3:
        return 0.0
    modules = shape.modules
    parameters = len(shape.weights)
    tuning = config.model.tuning
    models = 1
    if isinstance(tuning, Lora):
        adapters = len(shape.lora_targets(tuning))
        modules += MODULES_OF_ADAPTER * adapters
        parameters += 2 * adapters
    elif splits_reference(config.learner, config.learner.num_ranks):
        models = 2
    of_model = modules * HOOKS_OF_MODULE + parameters * METHODS_OF_PARAMETER
    return float(models * of_model)
