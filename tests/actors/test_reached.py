"""Which layers a push did not reach, by vLLM's own account of a reload; a small model stands for the engine's."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

from actors.vllm_api import get_layerwise_info, initialize_layerwise_reload
from actors.weights.reached import check_reached, unreached_layers


class Model(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.vision_tower = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.embed_tokens = nn.Embedding(5, 3)
        self.lm_head = nn.Linear(3, 5, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight


def after_push(model: Model, *without: str, padded: str = "none") -> list[str]:
    """A reload in which all layers but `without` are loaded; `padded` has room that no weight fills."""
    record_metadata_for_reloading(model)
    held = dict(model.named_parameters(remove_duplicate=False))
    initialize_layerwise_reload(model)
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if not any(True for _ in layer.parameters(recurse=False)):
            continue
        if name == padded:
            # vLLM is done with it when all layers are there.
            info.load_numel = 1
        elif not name.startswith(without or ("none",)):
            # What vLLM does with a layer that is complete.
            kernel: Any = info.kernel_tensors
            for leaf in kernel[0]:
                setattr(layer, leaf, held[f"{name}.{leaf}"])
            info.reset()
    return unreached_layers(model)


def test_all_layers_are_reached() -> None:
    assert after_push(Model()) == []


def test_a_layer_that_got_nothing_is_named() -> None:
    unreached = after_push(Model(), "layers.1")
    assert unreached == ["layers.1"]
    with pytest.raises(RuntimeError, match=r"got 1 layers .* such as layers\.1"):
        check_reached(unreached)


def test_a_frozen_tower_is_left_out_whole_or_not_at_all() -> None:
    assert after_push(Model(), "vision_tower") == []
    assert after_push(Model(), "vision_tower.0") == ["vision_tower.0"]


def test_a_tied_head_follows_the_embedding() -> None:
    assert after_push(Model(tied=True), "lm_head") == []
    assert after_push(Model(), "lm_head") == ["lm_head"]


def test_a_tied_head_follows_an_embedding_with_more_rows_than_tokens() -> None:
    tied = Model(tied=True)
    assert after_push(tied, "lm_head", padded="embed_tokens") == []
    assert after_push(Model(), "lm_head", padded="embed_tokens") == ["lm_head"]
