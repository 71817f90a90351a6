"""Tokenizers with each family's media tokens, and chat templates in each family's style."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from common.shapes.model import build_tokenizer
from common.worlds.policy import PAD

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""`IMAGE` is what a family writes for a picture, here and in the other templates."""
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}{% else %}[INST]"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}[/INST]{% endif %}"
    "{% endfor %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %} {{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def tokenizer_of(
    tokens: tuple[str, ...],
    *,
    bos: str | None,
    eos: str,
    roles: dict[str, str] | None = None,
) -> Any:
    """The shapes world's byte-level BPE with further special tokens.

    Args:
        roles: attributes of the tokenizer under which a processor looks for its media tokens.
    """
    roles = roles or {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=PAD,
        extra_special_tokens=roles,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    known = {PAD, eos, *roles.values()}
    further = [token for token in tokens if token not in known]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": further}, replace_extra_special_tokens=False
    )
    return tokenizer
