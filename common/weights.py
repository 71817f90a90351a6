"""Weights in flight: names, arrays and the checksum that both ends of a push agree on.

Names follow the LLaVA-1.5 hub scheme, `language_model.model.…`, `vision_tower.vision_model.…`, which vLLM reads for
every family; `hub_name` brings module names and older checkpoint names to it. numpy has no bfloat16, so such tensors
travel as their bits, `uint16`, under the name + "@bfloat16".
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from common.errors import UserError
from common.loading import readable
from common.protocols import Tensors

BFLOAT16 = "@bfloat16"
LM_HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"

_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "visual."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
_TOWER = "vision_tower."
_TOWER_MODEL = "vision_tower.vision_model."


def hub_name(name: str) -> str:
    """A parameter's name in the hub scheme, from its transformers (>= 5.19) module name; hub names stay as they are."""
    for old, new in _PREFIXES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    if name.startswith(_TOWER) and not name.startswith(_TOWER_MODEL):
        name = _TOWER_MODEL + name.removeprefix(_TOWER)
    return name


def to_arrays(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays by hub name, sharing memory with contiguous CPU tensors.

    A tied `lm_head` is sent explicitly: engines keep a packed copy of it which would stay stale without a word.
    """
    tensors = {hub_name(name): tensor for name, tensor in state.items()}
    if LM_HEAD not in tensors and EMBEDDING in tensors:
        tensors[LM_HEAD] = tensors[EMBEDDING]
    arrays = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            name, value = name + BFLOAT16, value.view(torch.uint16)
        arrays[name] = value.numpy()
    return arrays


def from_array(name: str, array: np.ndarray[Any, Any]) -> tuple[str, torch.Tensor]:
    """Hub name and tensor of one travelling array. Read-only arrays are shared: do not write to the result."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The given NumPy array is not writable"
        )
        value = torch.from_numpy(array)
    return (
        (name.removesuffix(BFLOAT16), value.view(torch.bfloat16))
        if name.endswith(BFLOAT16)
        else (name, value)
    )


def from_arrays(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Tensors by hub name, sharing memory with the arrays."""
    return dict(from_array(name, array) for name, array in tensors.items())


def checksum(tensors: Tensors) -> str:
    """SHA-256 over names in sorted order, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}\x1f{array.dtype.str}\x1f{array.shape}\x1e".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def checkpoint_shapes(model_path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes by hub name of everything in a model directory's safetensors files (headers are read, not weights).

    Raises:
        UserError: the directory holds no safetensors file, or one that cannot be read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(model_path).glob("*.safetensors")):
        with (
            readable(file, expected="weights"),
            safe_open(file, framework="np") as weights,
        ):
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                shapes[hub_name(name)] = tuple(weights.get_slice(name).get_shape())
    if not shapes:
        raise UserError(
            f"model.path: expected *.safetensors in {model_path}, got none; convert the checkpoint"
        )
    return shapes
