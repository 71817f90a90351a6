"""What the learner's forward keeps for its backward pass, and what both need while they work.

Per token and decoder layer, in numbers of the model's dtype (d width, q and k widths of queries and keys, m inner
width; `learner/forward/decoder.py` and `gated_mlp.py` say who keeps what):

    residual stream, read by two norms      2 d
    what the norms give to the projections  2 d
    queries, keys, values                   q + 2 k
    attention's output                      q        twice on a GPU, where calls are joined
    gate and up                             2 m      with adapters 3 m: down's adapter reads their product
    between the matrices of an adapter      r        of each adapter
    dropout in front of an adapter          a copy of its input and a mask

With gradient checkpointing only d of each layer, and all of it for one layer at a time.
In the last layer of a tree only predicted tokens have a query, an output and an MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.planner.rows import Rows
from cluster.planner.shape import Decoder, ModelShape
from common.config import Lora, RunConfig
from learner.forward.head import CHUNK_BYTES
from learner.forward.logps import CHUNK_POSITIONS
from learner.model.vision_tower import IMAGES_PER_RUN

FLOAT32 = 4
ITEM_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes of a rank.

    Attributes:
        kept: for the backward pass.
        working: buffers of the layer, or chunk of logits, that is being computed; at their largest.
        vision_cache: features that are kept across steps.
    """

    kept: float
    working: float
    vision_cache: float


def activations(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> Activations:
    """The activations of the largest forward."""
    item = ITEM_BYTES[config.model.dtype]
    layer = _layer_bytes(config, shape, rows)
    text = shape.text
    if config.learner.gradient_checkpointing:
        inputs = text.layers * rows.tokens * text.width * item
        kept = inputs + layer
    else:
        kept = (text.layers - 1) * layer + _last_layer_bytes(config, shape, rows, layer)
    kept += _vision_bytes(config, shape, rows) + _head_bytes(config, shape, rows)
    backward = rows.tokens * (3 * text.inner + 3 * text.width) * item
    working = max(
        backward, _logit_bytes(config, shape, rows), _tower_bytes(config, shape)
    )
    return Activations(kept, working, _vision_cache_bytes(config, shape, rows))


def _layer_bytes(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> float:
    """Bytes that a whole decoder layer keeps."""
    return rows.tokens * (
        _token_bytes_of_stream(config, shape, rows)
        + _token_bytes_of_keys(config, shape)
        + _token_bytes_of_queries(config, shape)
        + _token_bytes_of_mlp(config, shape, rows)
    )


def _last_layer_bytes(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
    layer: float,
) -> float:
    if not rows.shares_prompt or not shape.fuses_layers:
        return layer
    stream = _token_bytes_of_stream(config, shape, rows) / 2
    keys = _token_bytes_of_keys(config, shape)
    queries = _token_bytes_of_queries(config, shape)
    mlp = _token_bytes_of_mlp(config, shape, rows)
    # The first norm and the keys are of all tokens, the second norm and the MLP of predicted ones.
    of_all = rows.tokens * (stream + keys)
    return of_all + rows.predicted * (stream + queries + mlp)


def _token_bytes_of_stream(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> float:
    """Of a token: what both norms keep, and what they give on."""
    item = ITEM_BYTES[config.model.dtype]
    width = shape.text.width
    norm_input = item
    if not rows.shares_prompt or not shape.fuses_layers:
        # transformers' norms also keep the state in float32, and what they multiply by their weight.
        norm_input += FLOAT32
    return 2 * width * (norm_input + item)


def _token_bytes_of_keys(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    item = ITEM_BYTES[config.model.dtype]
    return 2 * shape.text.key_width * item + _adapter_bytes(
        config,
        shape,
        ("k_proj", "v_proj"),
    )


def _token_bytes_of_queries(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    item = ITEM_BYTES[config.model.dtype]
    outputs = 2 if config.learner.num_gpus else 1
    widths = (1 + outputs) * shape.text.query_width
    log_sums = shape.text.heads * FLOAT32
    return (
        widths * item + log_sums + _adapter_bytes(config, shape, ("q_proj", "o_proj"))
    )


def _token_bytes_of_mlp(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> float:
    item = ITEM_BYTES[config.model.dtype]
    is_lora = isinstance(config.model.tuning, Lora)
    matrices = 2
    if is_lora:
        matrices = 3
    if not rows.shares_prompt or not shape.fuses_layers:
        matrices = 4
    return matrices * shape.text.inner * item + _adapter_bytes(
        config, shape, ("gate_proj", "up_proj", "down_proj")
    )


def _adapter_bytes(
    config: RunConfig,
    shape: ModelShape,
    layers: tuple[str, ...],
) -> float:
    """Of a token: what the adapters of these layers keep, their dropped-out inputs included."""
    tuning = config.model.tuning
    if not isinstance(tuning, Lora) or "language" not in tuning.sides:
        return 0.0
    item = ITEM_BYTES[config.model.dtype]
    text = shape.text
    inputs = {"o_proj": text.query_width, "down_proj": text.inner}
    num_bytes = 0.0
    for layer in layers:
        if layer not in tuning.target_modules:
            continue
        num_bytes += tuning.r * item
        if tuning.dropout:
            # The copy, and a mask: a byte a number on a GPU, a number of the dtype on a CPU.
            mask = 1 if config.learner.num_gpus else item
            num_bytes += inputs.get(layer, text.width) * (item + mask)
    return num_bytes


def _head_bytes(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> float:
    """What the last norm and the head keep of predicted tokens; one that trains also its first chunk of e^logit."""
    item = ITEM_BYTES[config.model.dtype]
    kept = float(3 * rows.predicted * shape.text.width * item)
    is_fused = config.learner.fast.fused_logps and config.learner.zero_stage < 3
    if isinstance(config.model.tuning, Lora) or not is_fused:
        return kept
    return kept + min(CHUNK_BYTES, rows.predicted * shape.vocabulary * FLOAT32)


def _logit_bytes(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> float:
    """One chunk of logits, its float32 copy, and the copy that is multiplied by the head again."""
    item = ITEM_BYTES[config.model.dtype]
    fits = CHUNK_BYTES // (shape.vocabulary * FLOAT32)
    if config.learner.zero_stage == 3:
        # Checkpointed chunks: logits, log softmax, and its gradient.
        positions = min(rows.predicted, CHUNK_POSITIONS)
        return float(positions * shape.vocabulary * (item + 2 * FLOAT32))
    positions = min(rows.predicted, max(1, fits))
    copies = 2 * item if item < FLOAT32 else 0
    return float(positions * shape.vocabulary * (FLOAT32 + copies))


def _vision_bytes(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> float:
    """What the vision side keeps: nothing with a frozen one, the projector's inputs, or the tower's layers."""
    item = ITEM_BYTES[config.model.dtype]
    tuning = config.model.tuning
    patches = rows.image_tokens * shape.patches_per_token
    tower_trains = not config.model.freeze_vision
    if isinstance(tuning, Lora):
        tower_trains = "vision" in tuning.sides
        if set(tuning.sides) == {"language"}:
            return 0.0
    # The inputs of a norm and two matrices, and of the function between them.
    into = 2 * shape.patches_per_token * shape.tower.width
    projector = rows.image_tokens * (into + 2 * shape.text.width) * item
    if not tower_trains:
        return projector
    return projector + shape.tower.layers * patches * _tower_token(shape.tower) * item


def _tower_token(tower: Decoder) -> int:
    """Numbers that a layer of the tower keeps of a patch: norms, projections, attention, an MLP with its activation."""
    return 8 * tower.width + 2 * tower.inner


def _tower_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """The layer of the tower that is being computed, for one run of pictures."""
    item = ITEM_BYTES[config.model.dtype]
    limit = shape.picture_tokens(config.model) or config.model.max_length
    # No row holds a larger one.
    tokens = min(limit, config.model.max_length)
    patches = min(IMAGES_PER_RUN, config.learner.micro_batch) * tokens
    patches *= int(shape.patches_per_token)
    return float(patches * (4 * shape.tower.width + 2 * shape.tower.inner) * item)


def _vision_cache_bytes(
    config: RunConfig,
    shape: ModelShape,
    rows: Rows,
) -> float:
    fast = config.learner.fast
    is_on = fast.share_vision and rows.shares_prompt and config.learner.zero_stage < 3
    return float(fast.vision_cache_mb << 20) if is_on and shape.tower.layers else 0.0
