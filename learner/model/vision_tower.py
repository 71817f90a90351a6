"""Run the vision tower alone, and replay its states later to the projector.

A frozen tower gives the same states to policy and reference, but each of the two has its own projector. So the tower
runs once (`tower_states`), and both models read the result (`replayed`). What is recorded depends on where the
projector reads:

    family    projector                      recorded states
    LLaVA     behind the tower               hidden states [images or tiles, patches, width] per layer it reads
    Pixtral   behind the tower               the same, [1, patches of all images, width]
    Qwen      mergers inside of the tower    block outputs [patches, width] per block that a merger reads
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from common.model_parts import has_projector_inside, vision_tower
from learner.forward.tree import Media, joined

_LLAVA = ("llava", "llava_next")
IMAGES_PER_RUN = 8
"""Images (or tiles) per run of a CLIP tower, entries of media per run for features: bounds the memory of a run."""


@dataclass(frozen=True, slots=True)
class Features:
    """What the vision side makes of one entry of media: image features, or states of the tower.

    `pooled` has a tensor [tokens, width] per image, or per tile where the family makes one tensor of all tiles
    (`in_one`). `levels` has the same once per DeepStack level (Qwen3-VL), and is empty for other families.
    """

    pooled: list[Tensor]
    levels: list[list[Tensor]]
    in_one: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = chain(self.pooled, *self.levels)
        return sum(tensor.nbytes for tensor in tensors)

    def unshared(self) -> Features:
        """The same with storage of its own: a kept slice of a run's output would keep the output of the whole run."""
        pooled = _unshared(self.pooled)
        levels = [_unshared(level) for level in self.levels]
        return Features(pooled, levels, self.in_one)


def _unshared(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of those tensors that are a part of a larger storage."""
    unshared = []
    for tensor in tensors:
        is_whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        unshared.append(tensor if is_whole else tensor.clone())
    return unshared


def image_features(model: Any, media: Sequence[Media]) -> list[Features]:
    """Image features as the family computes them, projector included, in one run for all entries of media."""
    inputs = {}
    for name in media[0].inputs:
        parts = [entry.inputs[name] for entry in media]
        inputs[name] = joined(parts)
    output = model.model.get_image_features(**inputs, return_dict=True)
    in_one = isinstance(output.pooler_output, Tensor)
    pooled = list(output.pooler_output)
    levels = [list(level) for level in getattr(output, "deepstack_features", ())]
    counts = _num_pieces(media, len(pooled))

    # Back to entries of media: each takes as many images or tiles as it has.
    features = []
    start = 0
    for count in counts:
        stop = start + count
        entry_levels = [level[start:stop] for level in levels]
        features.append(Features(pooled[start:stop], entry_levels, in_one))
        start = stop
    return features


def _num_pieces(media: Sequence[Media], num_features: int) -> list[int]:
    """How many features each entry of media has: one per image, or one per tile (InternVL, SmolVLM)."""
    counts = [len(entry.sha256) for entry in media]
    if sum(counts) != num_features:
        # [tiles, channels, height, width], or with a dimension for the prompt in front
        shapes = [entry.inputs["pixel_values"].shape for entry in media]
        counts = [prod(shape[:-3]) for shape in shapes]
    assert sum(counts) == num_features, f"{num_features} features for {counts}"
    return counts


def tower_states(model: Any, media: Sequence[Media]) -> list[Features]:
    """The states that projectors read, per entry of media: `pooled` has one tensor per place where one is read."""
    record = _block_states if has_projector_inside(model) else _layer_states
    features = []
    for entry in media:
        states = record(model, entry)
        features.append(Features(states, levels=[]))
    return features


@contextmanager
def replayed(model: Any, states: Sequence[Features]) -> Iterator[None]:
    """Inside, the tower answers with these `tower_states` whatever pixels it is given; the projector runs as usual."""
    # From one list per entry of media to one tensor per place where a projector reads.
    states_by_entry = [entry.pooled for entry in states]
    states_by_place = zip(*states_by_entry, strict=True)
    joint = [torch.cat(parts, _patch_dim(model)) for parts in states_by_place]
    if has_projector_inside(model):
        replay = _replayed_blocks(vision_tower(model), joint)
    else:
        replay = _replayed_layers(model, joint)
    with replay:
        yield


# Projector inside of the tower (Qwen): blocks are recorded and replaced.


class _ReplayedBlock(nn.Module):
    """Stands in for a block: returns the block's recorded output, or its input where no merger reads the block."""

    def __init__(self, states: Tensor | None) -> None:
        super().__init__()
        self.states = states

    def forward(
        self,
        hidden: Tensor,
        **kwargs: Any,
    ) -> Tensor:
        return hidden if self.states is None else self.states


def _merger_blocks(tower: Any) -> list[int]:
    """Indices of the blocks that a merger reads: DeepStack's, and the last."""
    deepstack = getattr(tower, "deepstack_visual_indexes", ())
    last = len(tower.blocks) - 1
    return sorted({*deepstack, last})


def _block_states(model: Any, media: Media) -> list[Tensor]:
    """Outputs [patches, width] of the blocks that a merger reads."""
    tower = vision_tower(model)
    states: list[Tensor] = []

    def record(
        module: nn.Module,
        inputs: Any,
        output: Tensor,
    ) -> None:
        states.append(output)

    handles = []
    for index in _merger_blocks(tower):
        handle = tower.blocks[index].register_forward_hook(record)
        handles.append(handle)
    try:
        tower(
            media.inputs["pixel_values"],
            grid_thw=media.inputs["image_grid_thw"],
            return_dict=True,
        )
    finally:
        for handle in handles:
            handle.remove()
    return states


@contextmanager
def _replayed_blocks(tower: Any, states: Sequence[Tensor]) -> Iterator[None]:
    recorded = dict(zip(_merger_blocks(tower), states, strict=True))
    blocks = nn.ModuleList()
    for index in range(len(tower.blocks)):
        block = _ReplayedBlock(recorded.get(index))
        blocks.append(block)
    with _replaced(tower, "blocks", blocks):
        yield


# Projector behind the tower (LLaVA): hidden states are recorded, and the tower's forward is replaced.


def _projected_layers(config: Any) -> list[int]:
    """Layers of the tower that the projector reads, numbered as in `vision_feature_layer`."""
    layers = getattr(config, "vision_feature_layer", -1)
    if isinstance(layers, int):
        return [layers]
    return list(layers)


def _patch_dim(model: Any) -> int:
    """The dimension that grows with further images: Pixtral's tower has all patches in one row."""
    return int(vision_tower(model).config.model_type == "pixtral")


def _layer_states(model: Any, media: Media) -> list[Tensor]:
    """Hidden states [images or tiles, patches, width] per layer that the projector reads."""
    if model.config.model_type not in _LLAVA or _patch_dim(model):
        return _recorded_states(model, media)
    pixels = _without_padding_tiles(model.config, media)
    tower = vision_tower(model)
    layers = _projected_layers(model.config)
    # One list of layers per run -> one tensor per layer.
    runs = [_run_layers(tower, run, layers) for run in pixels.split(IMAGES_PER_RUN)]
    states_by_layer = zip(*runs, strict=True)
    return [torch.cat(parts) for parts in states_by_layer]


def _recorded_states(model: Any, media: Media) -> list[Tensor]:
    """The same of any family: what its tower answers when the family itself calls it."""
    outputs: list[Any] = []
    tower = vision_tower(model)
    handle = tower.register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    try:
        model.model.get_image_features(**media.inputs, return_dict=True)
    finally:
        handle.remove()
    (output,) = outputs
    # Only families that read a layer by its number have the tower keep hidden states.
    if output.hidden_states is None:
        return [output.last_hidden_state]
    return [output.hidden_states[layer] for layer in _projected_layers(model.config)]


def _without_padding_tiles(config: Any, media: Media) -> Tensor:
    """Pixels [images or tiles, channels, height, width]."""
    pixels = media.inputs["pixel_values"]
    # LLaVA-NeXT: [images, tiles, channels, height, width], padded to the image with most tiles.
    if pixels.ndim != 5:
        return pixels
    tiles = []
    for image, size in zip(pixels, media.inputs["image_sizes"], strict=True):
        num_tiles = _num_tiles(config, size)
        tiles.append(image[:num_tiles])
    return torch.cat(tiles)


def _num_tiles(config: Any, size: Tensor) -> int:
    """Number of tiles, without padding, of a LLaVA-NeXT image of this (height, width)."""
    tile_side = config.vision_config.image_size
    return int(image_size_to_num_patches(size, config.image_grid_pinpoints, tile_side))


def _run_layers(
    tower: Any,
    pixels: Tensor,
    layers: Sequence[int],
) -> list[Tensor]:
    """Hidden states behind these layers, numbered as in transformers: 0 is the embedding, -1 the last layer."""
    if tower.config.model_type != "clip_vision_model":
        output = tower(pixels, output_hidden_states=True, return_dict=True)
        return [output.hidden_states[layer] for layer in layers]
    # Layers of CLIP behind the last one that is read are not run at all.
    all_layers = tower.encoder.layers
    num_states = len(all_layers) + 1
    depths = [layer % num_states for layer in layers]
    layers_to_run = all_layers[: max(depths)]
    several = len(depths) > 1
    with _replaced(tower.encoder, "layers", layers_to_run):
        output = tower(pixels, output_hidden_states=several, return_dict=True)
    # All hidden states are kept only where more than the last is asked for.
    if not several:
        return [output.last_hidden_state]
    return [output.hidden_states[depth] for depth in depths]


@contextmanager
def _replayed_layers(model: Any, states: Sequence[Tensor]) -> Iterator[None]:
    tower = vision_tower(model)
    layers = _projected_layers(model.config)
    # The projector indexes hidden states by the layers of the config, so a mapping of those is enough.
    hidden: Mapping[int, Tensor] = dict(zip(layers, states, strict=True))
    output = SimpleNamespace(hidden_states=hidden, last_hidden_state=states[-1])
    tower.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        # Uncovers the class's own forward.
        del tower.forward


@contextmanager
def _replaced(
    module: Any,
    name: str,
    replacement: nn.ModuleList,
) -> Iterator[None]:
    """Inside, a submodule is replaced by another."""
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)
