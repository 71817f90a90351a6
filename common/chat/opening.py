"""Opens a model directory: configuration and processor, completed with what older exports leave out.

What a file does not say is taken from the model's own configuration, never guessed; what contradicts it is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor

from common.chat.known_models import check_family, check_processor_is_known
from common.chat.template import template_text
from common.errors import UserError
from common.loading import check_folder, readable

_MIN_TOKENS_PER_ROW = 0.8
_TOWERS_WITH_CLS = ("clip_vision_model", "clip")


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """Configuration and processor of a vision-language model.

    Attributes:
        template_source: the file or setting that the chat template comes from.
        notes: one line for everything that had to be completed.
    """

    config: Any
    processor: Any
    template_source: str
    notes: list[str]


def open_model(path: Path, key: str, chat_template: str | None) -> OpenedModel:
    """Open a directory and complete what its files leave out.

    Args:
        key: the setting that names the directory, for messages.
        chat_template: replaces the model's template.

    Raises:
        UserError: the directory holds no such model, or one of its files must be corrected.
    """
    check_folder(path, key)
    where = f"{key} {path}"
    check_family(path, where)
    # Without the argument transformers would ask on the terminal whether to run a folder's own code.
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        with readable(path, key):
            config = AutoConfig.from_pretrained(path, **options)
            processor = AutoProcessor.from_pretrained(path, **options)
        _check_vision_language(config, processor, where)
    except UserError:
        # The cause, where it is one that transformers does not name.
        check_processor_is_known(path, where)
        raise
    _check_image_token(config, processor, where)
    notes: list[str] = []
    _complete_processor(path, config, processor, where, notes)
    source = _template_source(path, processor, chat_template)
    _complete_template(processor, where, chat_template)
    _complete_eos(path, config, processor.tokenizer, where, notes)
    _check_vocabulary(config, processor.tokenizer, where, notes)
    return OpenedModel(config, processor, source, notes)


def image_token_id_of(config: Any) -> int | None:
    """The token that image features replace; None if the model takes no images."""
    for name in ("image_token_id", "image_token_index"):
        token_id = getattr(config, name, None)
        if token_id is not None:
            return int(token_id)
    return None


def generation_eos_ids(path: Path, config: Any) -> tuple[int, ...]:
    """The ids that sampling stops at: those of generation_config.json, or else of config.json; none if neither does."""
    value: Any = None
    file = path / "generation_config.json"
    if file.is_file():
        try:
            value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{file}: expected a JSON object, got: {error}; copy it again or take it away"
            ) from error
    if value is None:
        value = getattr(config.get_text_config(), "eos_token_id", None)
    if value is None:
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(int(token_id) for token_id in values)


def _check_vision_language(config: Any, processor: Any, where: str) -> None:
    parts = {
        "an image token in config.json": image_token_id_of(config) is not None,
        "vision_config in config.json": getattr(config, "vision_config", None)
        is not None,
        "an image processor (preprocessor_config.json)": hasattr(
            processor, "image_processor"
        ),
        "a tokenizer (tokenizer_config.json)": hasattr(processor, "tokenizer"),
    }
    missing = [name for name, is_there in parts.items() if not is_there]
    if missing:
        raise UserError(
            f"{where}: expected a vision-language model, got {config.model_type} without {', '.join(missing)}; give "
            "the folder of one"
        )


def placeholder_of(config: Any, processor: Any) -> str:
    """The token that a text has for an image; a processor makes image tokens of it, and marks around them."""
    token = getattr(processor, "image_token", None)
    if token is None:
        token = processor.tokenizer.convert_ids_to_tokens(image_token_id_of(config))
    return str(token)


def _check_image_token(config: Any, processor: Any, where: str) -> None:
    """Refuse a configuration whose image token is none of the tokenizer's, or none that the processor writes."""
    token_id = image_token_id_of(config)
    got = processor.tokenizer.convert_ids_to_tokens(token_id)
    expected = placeholder_of(config, processor)
    # Gemma-3's processor writes other tokens than the placeholder for an image's features.
    written = getattr(processor, "image_token_ids", None) or ()
    if got is not None and (expected == got or token_id in written):
        return
    raise UserError(
        f"{where}: expected one image token, got id {token_id} ({got or 'no token'}) in config.json and {expected} of "
        "the processor; copy the model's own tokenizer files again, or correct image_token_id (or image_token_index) "
        "in config.json"
    )


def _complete_processor(
    path: Path, config: Any, processor: Any, where: str, notes: list[str]
) -> None:
    """Fill in what LLaVA processors need to count image tokens, and refuse values that the model contradicts."""
    if not hasattr(processor, "vision_feature_select_strategy"):
        return
    vision = config.vision_config
    wanted = {
        "patch_size": getattr(vision, "patch_size", None),
        "vision_feature_select_strategy": getattr(
            config, "vision_feature_select_strategy", None
        ),
        "num_additional_image_tokens": int(vision.model_type in _TOWERS_WITH_CLS),
    }
    # transformers fills in None or 0 for what older exports leave out.
    written = _written_by_processor(path)
    for name, value in wanted.items():
        if value is None or not hasattr(processor, name):
            continue
        got = getattr(processor, name)
        if got == value:
            continue
        if written.get(name) is not None:
            raise UserError(
                f"{where}: expected {name} = {value} of the model in config.json, got {got}; correct "
                "processor_config.json"
            )
        setattr(processor, name, value)
        notes.append(
            f"{where}: processor_config.json has no {name}; {value} is used, which the model in config.json has"
        )


def _written_by_processor(path: Path) -> dict[str, Any]:
    """The fields of processor_config.json; none if there is no such file."""
    try:
        fields = json.loads((path / "processor_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _template_source(path: Path, processor: Any, given: str | None) -> str:
    """Which of the places that `_complete_template` looks at has the template."""
    if given is not None:
        return "model.chat_template"
    if processor.chat_template:
        for name in ("chat_template.jinja", "chat_template.json"):
            if (path / name).is_file():
                return name
        if "chat_template" in _written_by_processor(path):
            return "processor_config.json"
    return "tokenizer_config.json"


def _complete_template(processor: Any, where: str, given: str | None) -> None:
    """Take the given template, or else the processor's, or else the tokenizer's."""
    template = template_text(given) if given is not None else processor.chat_template
    template = template or processor.tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(
                f"{where}: expected a chat template named default, got {', '.join(template)}; give one of them with "
                "model.chat_template"
            )
        template = template["default"]
    if not template:
        raise UserError(
            f"{where}: expected a chat template (chat_template.jinja, or chat_template in tokenizer_config.json), got "
            "none; give one with model.chat_template, a template or the file that holds it"
        )
    processor.chat_template = template
    # Both are saved with a checkpoint, under one name.
    if processor.tokenizer.chat_template:
        processor.tokenizer.chat_template = template


def _complete_eos(
    path: Path, config: Any, tokenizer: Any, where: str, notes: list[str]
) -> None:
    """Give a tokenizer without eos_token the model's, so that templates can write it."""
    if tokenizer.eos_token is not None:
        return
    ids = generation_eos_ids(path, config)
    token = tokenizer.convert_ids_to_tokens(ids[0]) if ids else None
    if not token:
        raise UserError(
            f"{where}: expected an end of sequence, got none in tokenizer_config.json, generation_config.json and "
            "config.json; set eos_token in tokenizer_config.json"
        )
    tokenizer.eos_token = token
    notes.append(
        f"{where}: tokenizer_config.json says no eos_token; {token} is used, as generation_config.json has it"
    )


def _check_vocabulary(
    config: Any, tokenizer: Any, where: str, notes: list[str]
) -> None:
    """Compare tokenizer and embedding: another model's is refused, whether smaller or larger; a few too many are said.

    Rows that need a token without an embedding are refused one by one.
    """
    num_rows = config.get_text_config().vocab_size
    # Embeddings are padded to round numbers, by up to 2 % in published models.
    low, high = _MIN_TOKENS_PER_ROW * num_rows, num_rows / _MIN_TOKENS_PER_ROW
    if not low <= len(tokenizer) <= high:
        raise UserError(
            f"{where}: expected the tokenizer that the weights were trained with, got one of {len(tokenizer):,} tokens "
            f"for vocab_size = {num_rows:,} in config.json; copy the model's own tokenizer files again"
        )
    beyond = sorted(
        token
        for token, token_id in tokenizer.get_vocab().items()
        if token_id >= num_rows
    )
    if not beyond:
        return
    shown = ", ".join(beyond[:5])
    media_id = image_token_id_of(config)
    media_token = tokenizer.convert_ids_to_tokens(media_id)
    control = {tokenizer.eos_token, tokenizer.bos_token, media_token}
    needed = sorted(control.intersection(beyond))
    if needed:
        raise UserError(
            f"{where}: expected an embedding for every token, got vocab_size = {num_rows} in config.json without "
            f"{', '.join(needed)}; resize the embedding, or take the tokens out of tokenizer.json"
        )
    notes.append(
        f"{where}: the tokenizer has {len(beyond)} tokens beyond the embedding's {num_rows} ({shown}); rows that need "
        "one are dropped: take the tokens out of tokenizer.json, or resize the embedding"
    )
