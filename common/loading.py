"""One-line errors for checkpoints that cannot be loaded, whichever part of the project is the first to try."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from common.errors import UserError

_LFS_START = b"version https://git-lfs"
_INDEX = "model.safetensors.index.json"
_READ_BY_LOADERS = (".json", ".safetensors", ".model", ".jinja", ".bin")


def check_folder(path: str | Path, key: str = "model.path") -> None:
    """Refuse (UserError) what is no whole Hugging Face model directory: none at all, an adapter, LFS pointers."""
    folder = Path(path)
    _refuse_gguf(folder, key)
    adapter = folder / "adapter_config.json"
    # With both, transformers would load the adapter on top, and vLLM would not.
    if adapter.is_file():
        raise UserError(
            f"{key} {folder}: expected a whole model, got an adapter (adapter_config.json{_base_of(adapter)}): merge "
            "it into its base model (peft: merge_and_unload, save_pretrained) and give that folder"
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{key}: expected a Hugging Face model directory with config.json, got {folder}; check the path"
        )
    for file in sorted(folder.iterdir()):
        if file.suffix in _READ_BY_LOADERS and _is_lfs_pointer(file):
            raise UserError(
                f"{key} {folder}: expected the model's files, got a Git LFS pointer in place of {file.name}; fetch it "
                "with git lfs pull"
            )


def _refuse_gguf(path: Path, key: str) -> None:
    """Refuse a GGUF file, or a folder whose only weights are some."""
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if path.suffix != ".gguf" and (not files or list(path.glob("*.safetensors"))):
        return
    raise UserError(
        f"{key} {path}: expected a Hugging Face model directory with safetensors, got GGUF weights ({files[0].name}), "
        "which can be sampled but not trained; give the model that they were quantised from"
    )


def check_weights(path: str | Path, key: str = "model.path") -> None:
    """Refuse (UserError) a model directory without safetensors, or with fewer files of them than its index names."""
    folder = Path(path)
    names = {file.name for file in folder.glob("*.safetensors")}
    if not names:
        others = sorted(file.name for file in folder.glob("*.bin"))
        raise UserError(
            f"{key} {folder}: expected *.safetensors, got {', '.join(others[:3]) or 'none'}; convert the checkpoint "
            "(from_pretrained and save_pretrained of transformers write safetensors)"
        )
    missing = sorted(files_of_index(folder / _INDEX) - names)
    if missing:
        raise UserError(
            f"{key} {folder}: expected the files that {_INDEX} names, got a folder without {len(missing)} of them "
            f"({missing[0]}); copy the checkpoint again"
        )


def files_of_index(index: Path) -> set[str]:
    """The weight files that an index names; none where there is no index, or where whoever loads it will refuse it."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return set(map(str, weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _base_of(adapter: Path) -> str:
    """Which model an adapter belongs to, for the message."""
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" of {base}"


def _is_lfs_pointer(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(len(_LFS_START)) == _LFS_START
    except OSError:
        # Whoever loads the file says what is wrong with it.
        return False


@contextmanager
def readable(
    path: str | Path,
    key: str = "model.path",
    expected: str = "config and processor",
) -> Iterator[None]:
    """Turn whatever transformers and safetensors raise about the model directory at `path` into a UserError.

    Memory that runs out is no fault of the directory and passes.

    Args:
        key: the setting that names the directory.
        expected: what is being loaded, for the message.
    """
    where = f"{key} {path}"
    try:
        yield
    except (UserError, MemoryError):
        raise
    except SafetensorError as error:
        raise UserError(
            f"{where}: expected readable safetensors, got {error}; copy the checkpoint again"
        ) from error
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        message = str(error).strip() or type(error).__name__
        reason = message.splitlines()[0]
        raise UserError(
            f"{where}: expected {expected} that transformers can load, got: {reason}; check config.json and the files "
            "beside it"
        ) from error
