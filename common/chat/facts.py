"""What the proof of a model directory rests on, in words: how its conversations begin, are answered and end."""

from __future__ import annotations

from common.chat.encoder import ChatEncoder
from common.chat.positions import positions_in
from common.chat.room import encoded_question
from common.chat.template import PROBE
from common.config.model import AUTO_LENGTH


def facts_of(encoder: ChatEncoder) -> dict[str, str]:
    """Name -> what is so about a directory that has passed the proof."""
    turn = encoder.template.assistant_turn
    prompt = encoder.template.render([PROBE])
    end_from = (
        "the template's"
        if turn.end
        else "the tokenizer's eos_token, the template writes none"
    )
    stops = ", ".join(_named(encoder, token_id) for token_id in encoder.stop_token_ids)
    takes = "parts" if encoder.template.content == "parts" else "strings"
    return {
        "chat template": f"{encoder.template_source}, takes {takes}",
        "a question": repr(prompt),
        "beginning": _beginning(encoder, prompt),
        "generation prompt": _generation_prompt(encoder, prompt),
        "end of a turn": f"{_named(encoder, encoder.eos_token_id)}, {end_from}; sampling stops at {stops}",
        "pictures": _pictures(encoder),
        "tokenizer and embedding": f"{len(encoder.tokenizer):,} tokens, {encoder.num_embeddings:,} rows",
        "positions": _positions(encoder),
    }


def _positions(encoder: ChatEncoder) -> str:
    positions = positions_in(encoder.config)
    if positions is None:
        return "not stated: give a number as model.max_length"
    auto = min(positions, AUTO_LENGTH)
    return f"{positions:,}; model.max_length = auto is {auto:,}"


def _named(encoder: ChatEncoder, token_id: int) -> str:
    return f"{encoder.tokenizer.convert_ids_to_tokens(token_id)} (id {token_id})"


def _pictures(encoder: ChatEncoder) -> str:
    """How many tokens pictures of two sizes have, with the limits that are set."""
    counts = []
    for side in (64, 1024):
        num_tokens = encoded_question(encoder, side).num_image_tokens
        counts.append(f"{num_tokens:,} tokens of {side} x {side} pixels")
    return ", ".join(counts)


def _beginning(encoder: ChatEncoder, prompt: str) -> str:
    """Which token begins a conversation, and who puts it there."""
    bos = encoder.tokenizer.bos_token_id
    token_ids = encoder.text_ids(prompt)
    if bos is None or token_ids[0] != bos:
        return f"{_named(encoder, token_ids[0])}, no token of its own"
    written = prompt.startswith(encoder.tokenizer.bos_token)
    who = "template" if written else "tokenizer"
    return f"{_named(encoder, bos)} once, by the {who}"


def _generation_prompt(encoder: ChatEncoder, prompt: str) -> str:
    """What add_generation_prompt adds."""
    without = encoder.template.render([PROBE], is_prompt=False)
    added = prompt.removeprefix(without)
    if added:
        return repr(added)
    if encoder.template.assistant_turn.follows_prompt:
        return "none: an answer follows the question directly"
    return "NONE"
