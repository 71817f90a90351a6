"""Inside the engine's process: which of its layers a push did not reach.

vLLM keeps the old weights of a layer that gets none, and says so in its log alone.
"""

from __future__ import annotations

from typing import Any

from actors.vllm_api import get_layerwise_info
from actors.weights.push_check import NAMES_SHOWN
from common.model_parts import part_of


def unreached_layers(model: Any) -> list[str]:
    """Names of layers that hold weights and got none; to be asked between loading and the end of the reload.

    A vision tower that is left out whole is frozen. A head that is tied has the embedding's memory, and follows it.
    """
    unreached: dict[str, set[int]] = {}
    parts: set[str] = set()
    written: set[int] = set()
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        parameters, _ = info.restore_metadata
        if not any(weight.numel() > 1 for weight in parameters.values()):
            continue
        if info.can_load() and info.load_numel == 0:
            unreached[name] = _memory_of(layer, info)
        else:
            parts.add(part_of(name))
            written |= _memory_of(layer, info)
    names: list[str] = []
    for name, places in unreached.items():
        left_out = part_of(name) == "vision" and "vision" not in parts
        if not left_out and not places & written:
            names.append(name)
    return names


def check_reached(unreached: list[str]) -> None:
    """Raise RuntimeError if there are any."""
    if unreached:
        shown = ", ".join(unreached[:NAMES_SHOWN])
        raise RuntimeError(
            f"expected a push that reaches every layer of the engine, got {len(unreached)} layers that keep their old "
            f"weights, such as {shown}; engine and learner hold different models"
        )


def _memory_of(layer: Any, info: Any) -> set[int]:
    """Addresses of a layer's weights; before the reload is done with it they are not its parameters."""
    if info.kernel_tensors is None:
        return _places(layer.parameters(recurse=False))
    return _places(info.kernel_tensors[0].values())


def _places(tensors: Any) -> set[int]:
    """Addresses of tensors that have memory."""
    places: set[int] = set()
    for tensor in tensors:
        if tensor.device.type != "meta" and tensor.numel():
            places.add(tensor.data_ptr())
    return places
