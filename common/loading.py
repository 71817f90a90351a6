"""What is wrong with a checkpoint, in one line, whoever is the first to read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from common.errors import UserError


@contextmanager
def readable(
    path: str | Path, key: str = "model.path", expected: str = "config and processor"
) -> Iterator[None]:
    """What transformers and safetensors raise about the model directory at `path` becomes a UserError."""
    where = f"{key} {path}"
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"{where}: expected readable safetensors, got {error}; copy the checkpoint again"
        ) from error
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{where}: expected {expected} that transformers can load, got: {reason}; check config.json and the files "
            "beside it"
        ) from error
