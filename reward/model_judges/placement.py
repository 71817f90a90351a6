"""Where judges' models run."""

from __future__ import annotations

from typing import Any

import torch


def device_and_dtype() -> tuple[torch.device, Any]:
    """The worker's GPU with the checkpoint's own type, or the CPU with float32, which is faster there than bfloat16."""
    if torch.cuda.is_available():
        return torch.device("cuda"), "auto"
    return torch.device("cpu"), torch.float32
