"""The chat encoding proves itself on one conversation before anything starts.

Engine and learner share an encoder, so their comparison cannot see what both do wrong. transformers' own
`apply_chat_template(tokenize=True)` can: the tokens must be its tokens, and as many of them images as the model makes.
"""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any

from PIL import Image

from common.chat.template import PROBE, PROBE_ANSWER, QUESTION
from common.errors import Refused, UserError
from common.records import Message
from common.row_faults import first_line

if TYPE_CHECKING:
    from common.chat.encoder import ChatEncoder, EncodedPrompt

_SIDE = 64
"""Width and height in pixels of the probe's image."""
_MARK = re.compile(r"<\|[^\s<>|]+\|>|<(?:start|end)_of_[a-z]+>")
"""How families mark the ends of turns: `<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`."""
_FIXED_SIZE_TOWERS = ("clip_vision_model", "siglip_vision_model")


def prove(encoder: ChatEncoder) -> list[str]:
    """Compare the encoding with transformers' and the model's, and return what a person should know.

    Raises:
        UserError: the encoding is not transformers' own, or the processor does not fit the model.
    """
    picture = Image.linear_gradient("L").resize((_SIDE, _SIDE)).convert("RGB")
    picture = encoder.picture_sizes.fitted(picture)
    text = encoder.template.render([PROBE])
    try:
        encoded = encoder.encode_text("a question about an image", text, [picture])
    except Refused as error:
        reason = first_line(error.__cause__ or error)
        remedy = "correct processor_config.json or preprocessor_config.json"
        if encoder.picture_sizes.arguments:
            remedy = "correct mm_processor_kwargs, min_pixels or max_pixels beside it"
        raise UserError(
            f"{encoder.where}: expected a processor that takes a question about an image, got: {reason}; {remedy}"
        ) from error
    _check_embeddings(encoder, encoded)
    _check_beginning(encoder, text)
    _check_ends(encoder, text)
    _check_prompt(encoder, encoded, picture)
    _check_image_tokens(encoder, encoded)
    return [
        *_unknown_warnings(encoder, text),
        *_foreign_mark_warnings(encoder, text),
        *_turn_warnings(encoder, encoded, picture),
        *_stop_warnings(encoder),
    ]


def _check_embeddings(encoder: ChatEncoder, encoded: EncodedPrompt) -> None:
    """Refuse a model that has no embedding for what its template writes; a row's own words are that row's fault."""
    for token_id in (*encoded.token_ids, encoder.eos_token_id):
        if token_id < encoder.num_embeddings or token_id in encoder.media_token_ids:
            continue
        token = encoder.tokenizer.convert_ids_to_tokens(token_id)
        raise UserError(
            f"{encoder.where}: expected an embedding for every token of the chat template, got vocab_size = "
            f"{encoder.num_embeddings} in config.json without {token} (id {token_id}); resize the embedding, or "
            "correct chat_template.jinja"
        )


def _check_beginning(encoder: ChatEncoder, text: str) -> None:
    """Refuse a tokenizer that begins every text with a token that the template writes as well.

    transformers leaves its tokens out where the text begins with bos_token, and only there.
    """
    tokenizer = encoder.tokenizer
    if not encoder.adds_special_tokens(text):
        return
    for token in tokenizer.convert_ids_to_tokens(encoder.text_ids("")):
        if not text.lstrip().startswith(token):
            continue
        raise UserError(
            f"{encoder.where}: expected one {token} at the beginning of a chat, got one of the tokenizer and one of "
            f"the template, which begins with {text[:20]!r} where bos_token is {tokenizer.bos_token}; correct "
            "chat_template.jinja, or bos_token in tokenizer_config.json"
        )


def _check_ends(encoder: ChatEncoder, text: str) -> None:
    """Refuse a tokenizer that puts tokens of its own behind a prompt: the answer would begin after an end."""
    tokenizer = encoder.tokenizer
    plain = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer(text)["input_ids"]
    if whole[len(whole) - len(plain) :] == plain or text.startswith(
        tokenizer.bos_token or "\0"
    ):
        return
    raise UserError(
        f"{encoder.where}: expected a tokenizer that leaves a prompt's end alone, got one that puts "
        f"{tokenizer.convert_ids_to_tokens(whole[-1])} behind it; set add_eos_token to false in tokenizer_config.json, "
        "or take it out of the post_processor in tokenizer.json"
    )


def transformers_ids(
    encoder: ChatEncoder,
    messages: list[Message],
    pictures: list[Image.Image],
    is_prompt: bool = True,
) -> tuple[int, ...]:
    """transformers' own tokens of a conversation, images expanded."""
    encoding = encoder.processor.apply_chat_template(
        encoder.template.conversation(messages, pictures),
        tokenize=True,
        add_generation_prompt=is_prompt,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=encoder.picture_sizes.arguments,
    )
    return tuple(encoding["input_ids"][0].tolist())


def _check_prompt(
    encoder: ChatEncoder, encoded: EncodedPrompt, picture: Image.Image
) -> None:
    messages, pictures, ours = [PROBE], [picture], encoded.token_ids
    if encoder.template.content == "string":
        # transformers takes images out of parts alone.
        messages, pictures = [_text_only(PROBE)], []
        ours = encoder.encode_text("", encoder.template.render(messages), []).token_ids
    theirs = transformers_ids(encoder, messages, pictures)
    if ours == theirs:
        return
    place = 0
    while ours[place : place + 1] == theirs[place : place + 1]:
        place += 1
    raise UserError(
        f"{encoder.where}: expected transformers' own tokens of a chat, got others from token {place} on: "
        f"{_shown(encoder, ours, place)} for {_shown(encoder, theirs, place)}; correct chat_template.jinja or "
        "tokenizer_config.json"
    )


def _text_only(message: Message) -> Message:
    parts = [part for part in message.parts if part.kind == "text"]
    return Message(message.role, tuple(parts))


def _shown(encoder: ChatEncoder, token_ids: tuple[int, ...], place: int) -> str:
    tokens = encoder.tokenizer.convert_ids_to_tokens(list(token_ids[place : place + 4]))
    return repr("".join(map(str, tokens)))


def _check_image_tokens(encoder: ChatEncoder, encoded: EncodedPrompt) -> None:
    """Compare the processor's number of image tokens with the number of features that the model makes."""
    config = encoder.config
    vision = config.vision_config
    pixels = encoded.model_inputs.get("pixel_values")
    side = getattr(vision, "image_size", None)
    has_fixed_size = vision.model_type in _FIXED_SIZE_TOWERS and isinstance(side, int)
    if has_fixed_size and pixels is not None and pixels.shape[-1] != side:
        raise UserError(
            f"{encoder.where}: expected images of {side} pixels, vision_config.image_size in config.json, got "
            f"{pixels.shape[-1]} from the processor; correct crop_size in preprocessor_config.json or "
            "processor_config.json"
        )
    expected = _num_features(config, encoded.model_inputs)
    got = encoded.num_image_tokens
    if got != expected and (expected is not None or got == 0):
        raise UserError(
            f"{encoder.where}: expected {expected or 'some'} image tokens for an image of {_SIDE} x {_SIDE} pixels, as "
            f"the model in config.json makes them, got {got} from the processor; correct patch_size, merge_size and "
            "num_additional_image_tokens in processor_config.json or preprocessor_config.json"
        )


def _num_features(config: Any, inputs: dict[str, Any]) -> int | None:
    """How many features the model makes of the image; None for families whose number follows from its shape."""
    vision = config.vision_config
    grid = inputs.get("image_grid_thw")
    if grid is not None:
        return int(prod(grid[0].tolist()) // vision.spatial_merge_size**2)
    # Tiles are put together in a way of their own.
    if config.model_type != "llava" or vision.model_type not in _FIXED_SIZE_TOWERS:
        return None
    num_patches = int(vision.image_size // vision.patch_size) ** 2
    has_cls = vision.model_type == "clip_vision_model"
    drops_first = config.vision_feature_select_strategy == "default"
    return num_patches + int(has_cls) - int(drops_first)


def _unknown_warnings(encoder: ChatEncoder, text: str) -> list[str]:
    """Say it when the tokenizer has no token for what the template writes around a question, such as its roles."""
    tokenizer = encoder.tokenizer
    around: list[int] = []
    for part in text.split(QUESTION):
        around += tokenizer.encode(part, add_special_tokens=False)
    num_unknown = around.count(tokenizer.unk_token_id)
    if not num_unknown:
        return []
    return [
        f"{encoder.where}: the tokenizer makes {tokenizer.unk_token} of {num_unknown} pieces of what the chat template "
        "writes around a question, so roles cannot be told apart; add them to the tokenizer, or correct "
        "chat_template.jinja"
    ]


def _foreign_mark_warnings(encoder: ChatEncoder, text: str) -> list[str]:
    """Say it when the template's marks of turns are no tokens: template and tokenizer are of two models."""
    tokenizer = encoder.tokenizer
    # What the tokenizer does not know at all is counted by `_unknown_warnings`.
    spelled = [
        mark
        for mark in dict.fromkeys(_MARK.findall(text))
        if len(tokenizer.encode(mark, add_special_tokens=False)) > 1
    ]
    if not spelled:
        return []
    return [
        f"{encoder.where}: the chat template writes {', '.join(spelled)}, which the tokenizer has no token for and "
        "spells; copy the model's own tokenizer files again, or correct chat_template.jinja"
    ]


def _turn_warnings(
    encoder: ChatEncoder, encoded: EncodedPrompt, picture: Image.Image
) -> list[str]:
    """Say it when a trained answer is not what transformers makes of the same turn."""
    turn = encoder.template.assistant_turn
    is_known = turn.end is not None and turn.follows_prompt
    if not is_known or encoder.template.content == "string":
        return []
    answer = PROBE_ANSWER.parts[0].text
    ours = (*encoded.token_ids, *encoder.encode_response(answer))
    theirs = transformers_ids(
        encoder, [PROBE, PROBE_ANSWER], [picture], is_prompt=False
    )
    if theirs[: len(ours)] == ours:
        return []
    return [
        f"{encoder.where}: an answer's tokens behind the generation prompt differ from those that transformers makes "
        "of the whole turn; answers are trained as they are sampled, behind the generation prompt"
    ]


def _stop_warnings(encoder: ChatEncoder) -> list[str]:
    """Say it when the model's own list of ends lacks the token that the template ends an answer with."""
    listed = encoder.generation_eos_ids
    end = encoder.eos_token_id
    if not listed or end in listed:
        return []
    token = encoder.tokenizer.convert_ids_to_tokens(end)
    return [
        f"{encoder.where}: the chat template ends an answer with {token} (id {end}), generation_config.json with "
        f"{', '.join(map(str, listed))}; sampling stops at {token} as well: add its id to eos_token_id there, since "
        "other programs do not"
    ]
