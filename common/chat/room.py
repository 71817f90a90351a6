"""Whether a picture has room in `model.max_length`, looked at before anything starts."""

from __future__ import annotations

from math import isqrt

from PIL import Image

from common.chat.encoder import ChatEncoder, EncodedPrompt
from common.chat.template import PROBE
from common.errors import UserError

_SMALL = 64
"""Width and height in pixels of a picture that all families give as few tokens as they can, or nearly."""


def check_room(encoder: ChatEncoder, positions: int | None) -> None:
    """Refuse a length that is too short for a question about one small picture, and warn about larger ones.

    Args:
        positions: of the model, None where they are not known.

    Raises:
        UserError: every prompt with a picture would be dropped.
    """
    encoded = encoded_question(encoder, _SMALL)
    num_tokens, num_of_picture = len(encoded.token_ids), encoded.num_image_tokens
    length = encoder.max_length
    if num_tokens >= min(length, positions or length):
        needed = (
            f"more than {num_tokens} tokens, as many as a short question about one small picture has "
            f"({num_of_picture} of them the picture's)"
        )
        if positions is not None and num_tokens >= positions:
            raise UserError(
                f"{encoder.where}: expected a context of {needed}, got max_position_embeddings = {positions} in "
                "config.json; correct it, or use another model"
            )
        raise UserError(
            f"model.max_length: expected {needed} with {encoder.where}, got {length}; set model.max_length = "
            f"{min(_round_up(num_tokens + 256), positions or num_tokens + 512)} or more"
        )
    room = encoder.max_length - (num_tokens - num_of_picture) - 1
    most = _most_pixels(encoder, encoded, room)
    largest = encoder.picture_sizes.largest
    if most is not None and largest is not None and largest > most:
        encoder.warnings.append(
            f"{encoder.where}: pictures may have up to {largest:,} pixels, and those of more than about {most:,} leave "
            f"no room in model.max_length = {encoder.max_length} and are dropped; set model.max_pixels = {most} to "
            "have them made smaller, or raise model.max_length"
        )


def encoded_question(encoder: ChatEncoder, side: int) -> EncodedPrompt:
    """A short question about a square picture, as the model gets it (Refused as `encode_text`)."""
    picture = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    picture = encoder.picture_sizes.fitted(picture)
    text = encoder.template.render([PROBE])
    return encoder.encode_text("a question about an image", text, [picture])


def _most_pixels(encoder: ChatEncoder, encoded: EncodedPrompt, room: int) -> int | None:
    """How many pixels `room` tokens are, for families whose tokens are squares of a picture; None for the others."""
    if "image_grid_thw" not in encoded.model_inputs:
        return None
    vision = encoder.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    # Widths and heights are rounded to whole tokens, which may add half a row.
    return int((room - isqrt(room)) * side**2)


def _round_up(number: int) -> int:
    return -(-number // 64) * 64
