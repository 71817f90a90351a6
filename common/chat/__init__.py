"""Chat encoding: the one place that turns messages and images into model inputs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from common.chat.encoder import ChatEncoder as ChatEncoder
from common.chat.encoder import EncodedPrompt as EncodedPrompt
from common.chat.known_models import check_engine_knows
from common.chat.positions import positions_in
from common.chat.room import check_room
from common.chat.weights import check_embedding
from common.config import Model
from common.errors import UserError

log = logging.getLogger("sightline")


def check_model(model: Model, path: str | Path | None = None) -> ChatEncoder:
    """Open a model directory in the controller, before anything starts, and log what a person should know about it.

    Of its weights only the files' headers are read.

    Args:
        path: another folder in the place of `model.path`.

    Raises:
        UserError: the directory cannot be used, or one of its files must be corrected.
    """
    encoder = encoder_of(model, path)
    check_embedding(encoder)
    check_room(encoder, positions_of(encoder))
    _check_length(encoder, encoder.max_length)
    encoder.warnings += check_engine_knows(
        encoder.config, encoder.processor, encoder.where
    )
    for warning in encoder.warnings:
        log.warning(warning)
    return encoder


def _check_length(encoder: ChatEncoder, max_length: int) -> None:
    """Refuse more tokens than the model has positions for."""
    positions = positions_of(encoder)
    if positions is not None and max_length > positions:
        raise UserError(
            f"model.max_length: expected at most the {positions} positions of {encoder.where} "
            f"(max_position_embeddings in config.json), got {max_length}; set model.max_length = {positions}"
        )


def positions_of(encoder: ChatEncoder) -> int | None:
    """How many tokens the model was made for, None where its config does not say it."""
    return positions_in(encoder.config)


def encoder_of(model: Model, path: str | Path | None = None) -> ChatEncoder:
    """The encoder of a configuration's model, or of another folder in the place of `model.path`."""
    return ChatEncoder(
        path or model.path, model.max_length, model.chat_template, pictures=model
    )


def has_grid_positions(config: Any) -> bool:
    """Whether a model's rotary positions have three dimensions: time, height and width (Qwen's M-RoPE)."""
    text = config.get_text_config()
    # transformers 5 renamed `rope_scaling`; some families still carry the old name.
    parameters = getattr(text, "rope_parameters", None)
    scaling = getattr(text, "rope_scaling", None)
    return "mrope_section" in (parameters or scaling or {})
