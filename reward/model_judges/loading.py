"""Loads judges' models, with all of their weights, to where they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from common.errors import UserError
from common.loading import readable

KEY = "reward.judge.path"


def device() -> torch.device:
    """The worker's GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    auto: Any,
    path: str,
    expected: str,
    unread: Sequence[str] = (),
) -> Any:
    """The model of a folder, ready to judge: in the checkpoint's type on a GPU, in float32 on the CPU.

    Args:
        auto: one of transformers' AutoModel classes.
        expected: what the folder should hold, for messages.
        unread: weights that may be missing, since nobody reads what comes of them.

    Raises:
        UserError: it cannot be loaded, or a weight is missing. transformers would make one up and score by it.
    """
    place = device()
    # The CPU is faster with float32 than with bfloat16.
    dtype: Any = torch.float32 if place.type == "cpu" else "auto"
    with readable(path, KEY, expected):
        model, report = auto.from_pretrained(
            path,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    missing = sorted(set(report["missing_keys"]) - set(unread))
    if missing:
        raise UserError(
            f"{KEY} {path}: expected {expected}, got no weights for {missing[0]} ({len(missing)} missing); give a "
            "folder that has them"
        )
    return model.to(place).eval()
