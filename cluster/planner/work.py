"""FLOPs and bytes of a step, and the seconds that they take on a kind of GPU.

A product with N numbers costs 2 N a token forward and 2 N backward for each of: the gradient of its input, the gradient
of its weights if they train. Attention over T tokens costs 4 T² / 2 times the query width, a layer. A step runs

    reference     forward            of pairs whose log-probs are not cached
    policy        forward, backward  with gradient checkpointing forward twice

Sampling reads every prompt once for its k completions, then all weights and the cache once per token: the bandwidth of
memory is its limit. Efficiencies are assumptions (`gpu_kinds.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.planner import gpu_kinds
from cluster.planner.gpu_kinds import GpuKind
from cluster.planner.rows import Rows
from cluster.planner.sampling import engine_weight_bytes, kv_token_bytes
from cluster.planner.shape import ModelShape
from cluster.planner.trainable import adapter_numel, stage_of
from cluster.planner.training import model_bytes
from common.config import Lora, RunConfig
from common.push.adapter import pushes_adapter


@dataclass(frozen=True, slots=True)
class Work:
    """What a learner step and its rollouts take.

    Attributes:
        tokens: of a step through the language model, over all ranks.
        step_flops: of the learner, over all ranks.
        rollout_flops: of the completions that a step uses, over all engines.
        push_bytes: of one publish.
        gathered_bytes: that a rank gets from the others in a step (ZeRO-3, gradients).
    """

    tokens: float
    step_flops: float
    rollout_flops: float
    push_bytes: float
    gathered_bytes: float


@dataclass(frozen=True, slots=True)
class Seconds:
    """Expected seconds of one learner step; `total` is between two steps, on average over publishes."""

    compute: float
    communication: float
    rollout: float
    push: float
    total: float


def work_of(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> Work:
    """The work of a step whose rows are all as long as the longest."""
    pairs = config.learner.global_batch
    share = pairs / rows.pairs
    return Work(
        tokens=share * rows.tokens,
        step_flops=share * _micro_batch_flops(config, shape, rows),
        rollout_flops=_num_groups(config) * _group_flops(config, shape, rows),
        push_bytes=push_bytes(config, shape),
        gathered_bytes=_gathered_bytes(config, shape, rows),
    )


def push_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """Of one publish: the adapter alone, or all weights, those of a frozen vision side included."""
    if pushes_adapter(config.model, config.rollout):
        whole = model_bytes(config, shape)
        return engine_weight_bytes(config.model, config.rollout, shape) - whole
    return model_bytes(config, shape)


def seconds_of(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
    work: Work,
    kind: GpuKind,
) -> Seconds:
    """What the work takes on so many GPUs of a kind."""
    learner = config.learner
    peak = kind.peak(config.model.dtype) * gpu_kinds.LEARNER_EFFICIENCY
    num_gpus = max(learner.num_gpus, 1) * learner.num_ranks
    compute = work.step_flops / (num_gpus * peak)
    link = kind.link
    if num_gpus > config.cluster.gpus_per_node:
        link = min(link, gpu_kinds.NETWORK_BANDWIDTH)
    communication = work.gathered_bytes / (link * gpu_kinds.LINK_EFFICIENCY)
    rollout = _rollout_s(config, shape, rows, kind)
    push = work.push_bytes / 1e9 * gpu_kinds.PUSH_S_PER_GB
    push_share = push / config.loop.publish_interval
    training = compute + communication
    # Strictly on-policy, one waits for the other.
    if config.run_ahead:
        total = max(training, rollout) + push_share
    else:
        total = training + rollout + push_share
    return Seconds(compute, communication, rollout, push, total)


def _micro_batch_flops(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> float:
    """Policy and reference on one forward's pairs."""
    learner = config.learner
    forward = _forward_flops(shape, rows)
    is_lora = isinstance(config.model.tuning, Lora)
    backward = forward if is_lora else 2 * forward
    if is_lora:
        assert isinstance(config.model.tuning, Lora)
        # Gradients of the adapters' weights, and their forward and backward.
        backward += 6 * adapter_numel(config.model.tuning, shape) * rows.tokens
    repeats = 2 if learner.gradient_checkpointing else 1
    policy = repeats * forward + backward
    if not any(loss.reads_reference for loss in learner.losses):
        return policy
    return policy + forward


def _forward_flops(
    shape: ModelShape,
    rows: Rows,
) -> float:
    active = 0.0
    head = 0
    for weight in shape.of_part("language"):
        if weight.multiplies:
            active += weight.numel * weight.active
        if weight.is_head:
            head = weight.numel
    # A tied head is not among the weights, but multiplies.
    head = head or shape.vocabulary * shape.text.width
    language = 2 * active * rows.tokens + 2 * head * rows.predicted
    length = rows.tokens / rows.pairs
    attention = 2 * shape.text.layers * shape.text.query_width * length * rows.tokens
    return language + attention + _vision_flops(shape, rows.image_tokens)


def _vision_flops(
    shape: ModelShape,
    image_tokens: float,
) -> float:
    tower = 0
    for weight in shape.of_part("vision"):
        if weight.multiplies:
            tower += weight.numel
    projector = 0
    for weight in shape.of_part("projector"):
        if weight.multiplies:
            projector += weight.numel
    patches = image_tokens * shape.patches_per_token
    return 2 * (tower * patches + projector * image_tokens)


def _gathered_bytes(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> float:
    """Under ZeRO-3 all weights for each forward and backward of each micro-batch; always the gradients once."""
    learner = config.learner
    ranks = learner.num_ranks
    if ranks == 1:
        return 0.0
    weights = model_bytes(config, shape)
    tuning = config.model.tuning
    trained = weights
    if isinstance(tuning, Lora):
        trained = weights * adapter_numel(tuning, shape) / shape.numel
    micro_batches = learner.global_batch / ranks / rows.pairs
    if stage_of(config) < 3:
        return 2 * trained
    passes = 4 if learner.gradient_checkpointing else 3
    return micro_batches * (passes * weights + trained)


def _num_groups(config: RunConfig) -> float:
    """Groups that a step uses, on average over the mixture; without those that tie."""
    mixture = config.mixture
    online = max(mixture.fractions) * config.learner.global_batch
    fresh = online / mixture.online_uses
    return fresh / config.pairs_per_group


def _group_flops(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> float:
    """A prompt read once, and all its completions."""
    completions = config.rollout.num_completions
    tokens = rows.prompt + completions * rows.completion
    group = Rows(
        pairs=1,
        tokens=tokens,
        predicted=completions * rows.completion,
        prompt=rows.prompt,
        completion=rows.completion,
        image_tokens=min(rows.prompt, rows.image_tokens // rows.pairs),
        shares_prompt=True,
    )
    return _forward_flops(shape, group)


def _rollout_s(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
    kind: GpuKind,
) -> float:
    """Seconds of one engine for its share of a step's groups."""
    rollout = config.rollout
    model = config.model
    groups = _num_groups(config) / rollout.num_workers
    if not groups:
        return 0.0
    split = rollout.engine.tensor_parallel_size
    peak = split * kind.peak(model.dtype) * gpu_kinds.PREFILL_EFFICIENCY
    prefill = groups * _group_flops(config, shape, rows) / peak
    sequences = groups * rollout.num_completions
    rounds = math.ceil(sequences / rollout.engine.max_num_seqs)
    at_once = sequences / rounds
    cache = at_once * (rows.prompt + rows.completion / 2)
    cache *= kv_token_bytes(shape, model.dtype, split)
    weights = engine_weight_bytes(model, config.rollout, shape) / split
    bandwidth = kind.bandwidth * gpu_kinds.DECODE_EFFICIENCY
    decode = rounds * rows.completion * (weights + cache) / bandwidth
    return prefill + decode
