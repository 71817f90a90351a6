"""Weights on their way from learner to engine: names, arrays and the checksum that both ends of a push agree on.

Names follow the scheme of LLaVA-1.5 on the hub, `language_model.model.…` and `vision_tower.vision_model.…`, which vLLM
reads for every family. `hub_name` translates module names and older checkpoint names to it. numpy has no bfloat16, so
such tensors travel as their bits, `uint16`, under the name + "@bfloat16".
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import safe_open

from common.errors import UserError
from common.loading import readable
from common.protocols import Tensors

Array: TypeAlias = "np.ndarray[Any, Any]"
Shape: TypeAlias = tuple[int, ...]

BFLOAT16 = "@bfloat16"
LM_HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"

# The first prefix that matches is replaced, so the general "model." stands last.
_HUB_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "visual."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
# The hub's names have a level `vision_model`, which modules of transformers (>= 5.19) do not have.
_LLAVA_ENCODER = "vision_tower."
TOWER_MODEL = "vision_tower.vision_model."


def hub_name(name: str) -> str:
    """Translate a transformers (>= 5.19) module name to the hub scheme; hub names stay as they are."""
    for old, new in _HUB_PREFIXES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    if name.startswith(TOWER_MODEL):
        return name
    if name.startswith(_LLAVA_ENCODER):
        return TOWER_MODEL + name.removeprefix(_LLAVA_ENCODER)
    return name


def to_arrays(state: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Arrays by hub name, sharing memory with contiguous CPU tensors.

    A tied `lm_head` is sent under its own name too: engines keep a packed copy of it, which would silently stay stale.
    """
    tensors = {}
    for name, tensor in state.items():
        tensors[hub_name(name)] = tensor
    if LM_HEAD not in tensors and EMBEDDING in tensors:
        tensors[LM_HEAD] = tensors[EMBEDDING]
    arrays = {}
    for name, tensor in tensors.items():
        # A view where the tensor already lies on the CPU in order.
        value = tensor.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            name = name + BFLOAT16
            value = value.view(torch.uint16)
        arrays[name] = value.numpy()
    return arrays


def from_array(
    name: str,
    array: Array,
) -> tuple[str, torch.Tensor]:
    """Hub name and tensor of one travelling array.

    They share their memory, also where the array is read-only: do not write to the result.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The given NumPy array is not writable"
        )
        value = torch.from_numpy(array)
    if name.endswith(BFLOAT16):
        name = name.removesuffix(BFLOAT16)
        value = value.view(torch.bfloat16)
    return name, value


def from_arrays(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Tensors by hub name, sharing memory with the arrays."""
    by_name = {}
    for travelling_name, array in tensors.items():
        name, value = from_array(travelling_name, array)
        by_name[name] = value
    return by_name


def checksum(tensors: Tensors) -> str:
    """SHA-256 over names in sorted order, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        # Separators that no name contains, so that no two sets have the same bytes.
        header = f"{name}\x1f{array.dtype.str}\x1f{array.shape}\x1e"
        digest.update(header.encode())
        flat_bytes = array.reshape(-1).view(np.uint8)
        digest.update(flat_bytes.data)
    return digest.hexdigest()


def tensor_names(model_path: str | Path) -> list[str]:
    """Names of all tensors in a model directory's safetensors files, as they stand there."""
    names: list[str] = []
    for file in sorted(Path(model_path).glob("*.safetensors")):
        with (
            readable(file, expected="weights"),
            safe_open(file, framework="np") as weights,
        ):
            names += weights.keys()
    return names


def checkpoint_shapes(model_path: str | Path) -> dict[str, Shape]:
    """Shapes by hub name of all tensors in a model directory's safetensors files. Only headers are read.

    Raises:
        UserError: the directory holds no safetensors file, or one that cannot be read.
    """
    shapes: dict[str, Shape] = {}
    for file in sorted(Path(model_path).glob("*.safetensors")):
        with (
            readable(file, expected="weights"),
            safe_open(file, framework="np") as weights,
        ):
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                shape = weights.get_slice(name).get_shape()
                shapes[hub_name(name)] = tuple(shape)
    if not shapes:
        raise UserError(
            f"model.path: expected *.safetensors in {model_path}, got none; convert the checkpoint"
        )
    return shapes
