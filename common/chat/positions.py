"""How many positions a model has: the longest sequence that it was made for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from common.chat.known_models import check_family
from common.errors import UserError
from common.loading import check_folder, readable

_SCALED_ALREADY = ("longrope", "llama3", "yarn")
"""Kinds of stretched rotary embeddings whose max_position_embeddings says how far they reach."""


def positions_in(config: Any) -> int | None:
    """Positions of a model by its configuration, as vLLM counts them; None where it does not say."""
    text = config.get_text_config()
    positions: int | None = getattr(text, "max_position_embeddings", None)
    if positions is None:
        return None
    # Gemma-3's number is that of its stretched layers.
    if "gemma3" in text.model_type:
        return positions
    factor = 1.0
    for parameters in _rotary(text):
        if parameters.get("rope_type", "default") not in _SCALED_ALREADY:
            factor = parameters.get("factor") or factor
    return int(positions * factor)


def positions_of_directory(path: str | Path) -> int:
    """Positions of a model directory, of which config.json alone is read.

    Raises:
        UserError: it cannot be read, or does not say.
    """
    check_folder(path)
    check_family(Path(path), f"model.path {path}")
    with readable(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    positions = positions_in(config)
    if positions is None:
        raise UserError(
            f"{path}: expected max_position_embeddings in config.json, got none; set a number of tokens"
        )
    return positions


def _rotary(text: Any) -> Iterator[Mapping[str, Any]]:
    """The rotary parameters: one table, or one for every kind of layer."""
    parameters = getattr(text, "rope_parameters", None) or {}
    tables = [value for value in parameters.values() if isinstance(value, Mapping)]
    yield from tables or [parameters]
