"""One-line errors for checkpoints that cannot be loaded, whichever part of the project is the first to try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from common.errors import UserError


@contextmanager
def readable(
    path: str | Path,
    key: str = "model.path",
    expected: str = "config and processor",
) -> Iterator[None]:
    """Turn what transformers and safetensors raise about the model directory at `path` into a UserError.

    Args:
        key: the setting that names the directory.
        expected: what is being loaded, for the message.
    """
    where = f"{key} {path}"
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"{where}: expected readable safetensors, got {error}; copy the checkpoint again"
        ) from error
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        message = str(error).strip() or type(error).__name__
        reason = message.splitlines()[0]
        raise UserError(
            f"{where}: expected {expected} that transformers can load, got: {reason}; check config.json and the files "
            "beside it"
        ) from error
