"""Vision towers run on their own, and their states replayed to the projector behind (or, for Qwen, inside of) them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from learner.tree import Media, joined

TOWER_IMAGES = 8
"""Images (tiles) per run of a CLIP tower, entries of media per run for features: bounds what it needs at a time."""


@dataclass(frozen=True, slots=True)
class Features:
    """Of one entry of media: a tensor [tokens, width] per image; the same per level for DeepStack models."""

    pooled: list[Tensor]
    levels: list[list[Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(
            tensor.nbytes
            for tensor in [
                *self.pooled,
                *(each for level in self.levels for each in level),
            ]
        )

    def alone(self) -> Features:
        """The same without views of what several images share: one that is kept would keep them all."""
        return Features(
            [_alone(each) for each in self.pooled],
            [[_alone(e) for e in level] for level in self.levels],
        )


def image_features(model: Any, media: Sequence[Media]) -> list[Features]:
    """The family's own features (projector included), one run for all media."""
    inputs = {
        name: joined([each.inputs[name] for each in media]) for name in media[0].inputs
    }
    output = model.model.get_image_features(**inputs, return_dict=True)
    pooled, levels = (
        list(output.pooler_output),
        [list(level) for level in getattr(output, "deepstack_features", ())],
    )
    counts = [len(each.sha256) for each in media]
    assert len(pooled) == sum(counts), (
        f"{len(pooled)} features for {sum(counts)} images"
    )
    starts = [sum(counts[:index]) for index in range(len(counts))]
    cuts = [
        slice(start, start + count) for start, count in zip(starts, counts, strict=True)
    ]
    return [Features(pooled[cut], [level[cut] for level in levels]) for cut in cuts]


def _alone(tensor: Tensor) -> Tensor:
    return (
        tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    )


def tower_parameters(model: Any) -> Iterator[nn.Parameter]:
    """Of the tower without projectors; Qwen's mergers are such, and sit inside of it."""
    tower = (
        model.model.visual
        if hasattr(model.model, "visual")
        else model.model.vision_tower
    )
    return (
        parameter
        for name, parameter in tower.named_parameters()
        if "merger" not in name
    )


def tower_states(model: Any, media: Sequence[Media]) -> list[Features]:
    """What projectors read, per entry of media: a tensor for each place in the tower that one of them is at."""
    return [
        Features(
            _block_states(model, each)
            if hasattr(model.model, "visual")
            else _layer_states(model, each),
            [],
        )
        for each in media
    ]


@contextmanager
def replayed(model: Any, states: Sequence[Features]) -> Iterator[None]:
    """The tower answers with these states, whatever pixels it is given; everything behind it runs as ever."""
    joint = [
        torch.cat(parts)
        for parts in zip(*(each.pooled for each in states), strict=True)
    ]
    if hasattr(model.model, "visual"):
        visual = model.model.visual
        known = dict(zip(_levels(visual), joint, strict=True))
        blocks = nn.ModuleList(
            _Replay(known.get(index)) for index in range(len(visual.blocks))
        )
        with _exchanged(visual, "blocks", blocks):
            yield
        return
    hidden: Mapping[int, Tensor] = dict(zip(_layers(model.config), joint, strict=True))
    tower = model.model.vision_tower
    tower.forward = lambda *args, **kwargs: SimpleNamespace(hidden_states=hidden)
    try:
        yield
    finally:
        del tower.forward


class _Replay(nn.Module):
    """Stands in for a block: gives what the block gave, or what it is given where nothing reads the block."""

    def __init__(self, states: Tensor | None) -> None:
        super().__init__()
        self.states = states

    def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        return hidden if self.states is None else self.states


def _levels(visual: Any) -> list[int]:
    """Blocks of a Qwen tower that a merger reads: DeepStack's, and the last."""
    return sorted(
        {*getattr(visual, "deepstack_visual_indexes", ()), len(visual.blocks) - 1}
    )


def _block_states(model: Any, media: Media) -> list[Tensor]:
    visual = model.model.visual
    states: list[Tensor] = []
    handles = [
        visual.blocks[level].register_forward_hook(
            lambda module, inputs, output: states.append(output)
        )
        for level in _levels(visual)
    ]
    try:
        visual(
            media.inputs["pixel_values"],
            grid_thw=media.inputs["image_grid_thw"],
            return_dict=True,
        )
    finally:
        for handle in handles:
            handle.remove()
    return states


def _layers(config: Any) -> list[int]:
    """Layers of a LLaVA's tower that its projector reads, as its configuration counts them."""
    wanted = config.vision_feature_layer
    return [wanted] if isinstance(wanted, int) else list(wanted)


def _layer_states(model: Any, media: Media) -> list[Tensor]:
    """[images or tiles, patches, width] per layer. Layers of CLIP behind the last one read are not run."""
    config, tower, pixels = (
        model.config,
        model.model.vision_tower,
        media.inputs["pixel_values"],
    )
    if pixels.ndim == 5:
        sizes = media.inputs["image_sizes"]
        pixels = torch.cat(
            [
                tiles[: _num_tiles(config, size)]
                for tiles, size in zip(pixels, sizes, strict=True)
            ]
        )
    parts = [
        _run_layers(tower, chunk, _layers(config))
        for chunk in pixels.split(TOWER_IMAGES)
    ]
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def _num_tiles(config: Any, size: Tensor) -> int:
    """Tiles of a LLaVA-NeXT image of this (height, width); those behind are padding."""
    return int(
        image_size_to_num_patches(
            size, config.image_grid_pinpoints, config.vision_config.image_size
        )
    )


def _run_layers(tower: Any, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Hidden states behind these layers, counted as transformers does (0 is the embedding, -1 the last)."""
    if tower.config.model_type != "clip_vision_model":
        states = tower(
            pixels, output_hidden_states=True, return_dict=True
        ).hidden_states
        return [states[layer] for layer in layers]
    all_layers = tower.encoder.layers
    places = [layer % (len(all_layers) + 1) for layer in layers]
    with _exchanged(tower.encoder, "layers", all_layers[: max(places)]):
        output = tower(pixels, output_hidden_states=len(places) > 1, return_dict=True)
    return [
        output.last_hidden_state if len(places) == 1 else output.hidden_states[place]
        for place in places
    ]


@contextmanager
def _exchanged(module: Any, name: str, other: nn.ModuleList) -> Iterator[None]:
    own = getattr(module, name)
    setattr(module, name, other)
    try:
        yield
    finally:
        setattr(module, name, own)
