"""The shape of a model, from its config file alone: the pinned transformers build it without weights (meta device)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from common.config import Lora, Model
from common.errors import UserError
from common.loading import readable
from common.model_parts import language_model, part_of
from learner.forward import decoder, tree_logps

_HEADS = ("lm_head.weight",)
_EXPERTS = ".experts."


class Unplanned(UserError):
    """A model whose config does not say what the planner asks for; it may run all the same."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter. `rows` and `columns` are those of a linear layer's matrix, 0 for anything else.

    Attributes:
        name: in transformers.
        part: language, projector or vision.
        numel: number of elements.
        active: share of it that a token goes through: below 1 for experts of a mixture.
    """

    name: str
    part: str
    numel: int
    rows: int = 0
    columns: int = 0
    active: float = 1.0

    @property
    def is_head(self) -> bool:
        """Whether it turns states into logits."""
        return self.name.endswith(_HEADS)

    @property
    def multiplies(self) -> bool:
        """Whether every token is multiplied by it; the head works where tokens are predicted, and counts apart."""
        is_matrix = self.rows > 0 or self.active < 1
        return is_matrix and not self.is_head


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes of a stack of layers; `kv_heads` are fewer than `heads` with grouped queries."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int

    @property
    def query_width(self) -> int:
        """Numbers of a token's queries."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """Numbers of a token's keys; values have as many."""
        return self.kv_heads * self.head_width


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the planner knows of a model.

    Attributes:
        family: `model_type` of its config.
        modules: number of them in transformers' model.
        weights: every parameter once; a head that is tied to the embedding is not among them.
        text, tower: sizes of the language model and of the vision tower.
        vocabulary: rows of the head.
        positions: the longest sequence that the model was made for.
        image_tokens: most tokens of one picture, None where the picture's size decides.
        patches_per_token: of the vision tower.
        pixels_per_token: where the picture's size decides.
        takes_trees, fuses_layers: whether the learner's fast paths know the family.
    """

    family: str
    modules: int
    weights: tuple[Weight, ...]
    text: Decoder
    tower: Decoder
    vocabulary: int
    positions: int
    image_tokens: int | None
    patches_per_token: float
    pixels_per_token: int | None
    takes_trees: bool
    fuses_layers: bool

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return numel_of(self.weights)

    def picture_tokens(
        self,
        model: Model,
    ) -> int | None:
        """Most tokens of one picture under the limits of a config; None where nothing limits it."""
        if self.pixels_per_token and model.max_pixels:
            return max(1, model.max_pixels // self.pixels_per_token)
        return self.image_tokens

    def of_part(
        self,
        *parts: str,
    ) -> list[Weight]:
        """The weights of some parts."""
        return [weight for weight in self.weights if weight.part in parts]

    def lora_targets(
        self,
        tuning: Lora,
    ) -> list[Weight]:
        """The matrices that carry adapters, as `common.model_parts.lora_targets` picks them."""
        targets = []
        for weight in self.weights:
            if weight.rows == 0 or weight.part not in tuning.sides:
                continue
            layer = weight.name.removesuffix(".weight").rpartition(".")[2]
            if weight.part != "language" or layer in tuning.target_modules:
                targets.append(weight)
        return targets


def numel_of(weights: Iterable[Weight]) -> int:
    """Number of elements of all of them."""
    return sum(weight.numel for weight in weights)


def shape_of(path: str | Path) -> ModelShape:
    """Read a model directory's config.json.

    Raises:
        UserError: the pinned transformers does not know the architecture.
        Unplanned: its config names sizes otherwise than those of the families we know.
    """
    with readable(path, expected="an architecture"):
        config: Any = AutoConfig.from_pretrained(
            path, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(
                config, trust_remote_code=False
            )
    try:
        return model_shape(model)
    except (AttributeError, TypeError) as error:
        raise Unplanned(
            f"memory: expected a config whose sizes the planner knows, got that of {path} ({error}); watch the memory "
            "of the first steps"
        ) from error


def model_shape(model: Any) -> ModelShape:
    """The shape of a transformers model; its tensors may be on the meta device."""
    linear: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            linear[f"{name}.weight"] = module
    config = model.config
    text = config.get_text_config()
    takes_trees = tree_logps.why_not(model) is None
    fuses_layers = False
    if takes_trees:
        reason = decoder.why_not(language_model(model), config.vision_config)
        fuses_layers = reason is None
    active = _active_share(text)
    weights = []
    for name, parameter in model.named_parameters():
        layer = linear.get(name)
        weights.append(
            Weight(
                name,
                part_of(name),
                parameter.numel(),
                layer.out_features if layer else 0,
                layer.in_features if layer else 0,
                active if _EXPERTS in name else 1.0,
            )
        )
    return ModelShape(
        family=config.model_type,
        modules=len(list(model.modules())),
        weights=tuple(weights),
        text=_text(text),
        tower=_tower(config.vision_config),
        vocabulary=text.vocab_size,
        positions=_positions(text),
        image_tokens=_image_tokens(config),
        patches_per_token=_patches_per_token(config.vision_config),
        pixels_per_token=_pixels_per_token(config.vision_config),
        takes_trees=takes_trees,
        fuses_layers=fuses_layers,
    )


def _active_share(text: Any) -> float:
    """The share of a layer's experts that one token goes through."""
    num_experts = getattr(text, "num_experts", None)
    if not num_experts:
        return 1.0
    return float(text.num_experts_per_tok / num_experts)


def _text(text: Any) -> Decoder:
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Decoder(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner=_inner(text),
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_width=head_width,
    )


def _positions(text: Any) -> int:
    """Positions of the model; rotary embeddings that are stretched reach so many times further."""
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("factor") or 1.0
    return int(text.max_position_embeddings * factor)


def _inner(text: Any) -> int:
    """Inner width that a token sees: of its experts together, where there are some."""
    width = getattr(text, "moe_intermediate_size", None)
    if width and getattr(text, "num_experts_per_tok", None):
        return int(width * text.num_experts_per_tok)
    return int(text.intermediate_size)


def _tower(vision: Any) -> Decoder:
    # Qwen's towers name their sizes otherwise than CLIP's.
    layers = getattr(vision, "depth", None) or vision.num_hidden_layers
    heads = getattr(vision, "num_heads", None) or vision.num_attention_heads
    width = vision.hidden_size
    return Decoder(
        layers, width, vision.intermediate_size, heads, heads, width // heads
    )


def _image_tokens(config: Any) -> int | None:
    vision = config.vision_config
    if getattr(vision, "spatial_merge_size", None) is not None:
        return None
    side = getattr(vision, "image_size", None)
    patch = getattr(vision, "patch_size", None)
    if not isinstance(side, int) or not isinstance(patch, int):
        return None
    tile = getattr(config, "image_seq_length", None) or (side // patch) ** 2
    grids = getattr(config, "image_grid_pinpoints", None)
    if not grids:
        return int(tile)
    # AnyRes: the whole picture as one tile, and the largest grid of tiles, with a separator behind every row.
    most = 0
    for height, width in grids:
        num_tiles = (height // side) * (width // side)
        separators = height // patch
        most = max(most, num_tiles * tile + separators)
    return int(tile + most)


def _patches_per_token(vision: Any) -> float:
    merge = getattr(vision, "spatial_merge_size", None) or 1
    return float(merge * merge)


def _pixels_per_token(vision: Any) -> int | None:
    merge = getattr(vision, "spatial_merge_size", None)
    patch = getattr(vision, "patch_size", None)
    if merge is None or not isinstance(patch, int):
        return None
    return int(patch * merge) ** 2
