"""The safetensors files of a model directory, a tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from safetensors import safe_open

from common.errors import UserError
from common.loading import files_of_index, readable

if TYPE_CHECKING:
    import torch

Shape: TypeAlias = tuple[int, ...]
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def tensor_shapes(
    model_path: str | Path,
    key: str = "model.path",
) -> dict[str, Shape]:
    """Shapes of all tensors by their names in the files. Only headers are read.

    Raises:
        UserError: the directory holds no safetensors file, or one that cannot be read.
    """
    shapes: dict[str, Shape] = {}
    for file in weight_files(model_path):
        with (
            readable(file, expected="weights"),
            safe_open(file, framework="np") as weights,
        ):
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                shapes[name] = tuple(weights.get_slice(name).get_shape())
    if not shapes:
        raise UserError(
            f"{key}: expected *.safetensors in {model_path}, got none; convert the checkpoint"
        )
    return shapes


def tensors(
    model_path: str | Path,
    wanted: Callable[[str], bool],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors whose names are wanted, one in memory at a time.

    Raises:
        UserError: a file cannot be read.
    """
    for file in weight_files(model_path):
        with (
            readable(file, expected="weights"),
            safe_open(file, framework="pt") as weights,
        ):
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                if wanted(name):
                    yield name, weights.get_tensor(name)


def weight_files(model_path: str | Path) -> list[Path]:
    """Those that transformers reads: Mistral's directories hold the same weights once more, by names of their own.

    Raises:
        UserError: there is an index that names none.
    """
    folder = Path(model_path)
    index = folder / INDEX
    indexed = files_of_index(index)
    if indexed:
        return [folder / name for name in sorted(indexed)]
    if index.is_file():
        raise UserError(
            f"{index}: expected a weight_map of tensors and their files, got none; copy the checkpoint again"
        )
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    return sorted(folder.glob("*.safetensors"))
