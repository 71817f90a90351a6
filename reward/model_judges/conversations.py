"""Whole conversations as inputs of a reward model: the prompt, and a completion as its last turn."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from transformers import AutoTokenizer

from common.chat import ChatEncoder
from common.errors import Refused
from common.loading import readable
from common.records import Prompt, RolloutGroup
from common.row_faults import refusing

log = logging.getLogger(__name__)

TOKEN_LEVEL = ("mm_token_type_ids", "token_type_ids")
"""Inputs with one value per token. Those of a completion are 0: text."""


class Conversations(Protocol):
    """Makes the inputs of a model."""

    def inputs_of(self, group: RolloutGroup) -> Iterator[dict[str, torch.Tensor]]:
        """Inputs of one sequence per completion, in order.

        Raises:
            Refused: a conversation that does not fit, has no readable picture, or spells special tokens.
        """
        ...


class WithPictures:
    """For a model that sees: token ids with images expanded, and pixels, as everywhere else in this project."""

    def __init__(
        self,
        path: str,
        max_length: int,
        key: str,
    ) -> None:
        self._encoder = ChatEncoder(path, max_length, key=key)
        self._max_length = max_length

    def inputs_of(self, group: RolloutGroup) -> Iterator[dict[str, torch.Tensor]]:
        """See `Conversations`."""
        prompt = self._encoder.encode_prompt(group.prompt)
        for completion in group.completions:
            answer = self._encoder.encode_response(completion.text)
            self._check_no_media(group.prompt, answer)
            token_ids = [*prompt.token_ids, *answer]
            _check_length(group.prompt, len(token_ids), self._max_length)
            inputs = dict(prompt.model_inputs)
            for name in TOKEN_LEVEL:
                if name in inputs:
                    types = inputs[name]
                    inputs[name] = torch.cat(
                        [types, types.new_zeros(1, len(answer))], dim=1
                    )
            inputs["input_ids"] = torch.tensor([token_ids])
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            yield inputs

    def _check_no_media(
        self,
        prompt: Prompt,
        answer: tuple[int, ...],
    ) -> None:
        """Refuse an answer that spells the place of a picture: there would be no pixels for it."""
        if set(answer).intersection(self._encoder.media_token_ids):
            raise Refused(
                "special_token",
                f"prompt {prompt.id}: expected an answer without media tokens, got one; take it out",
            )


class TextsOnly:
    """For a model of texts: its chat template, or question and answer as a pair where it has none."""

    def __init__(
        self,
        path: str,
        max_length: int,
        key: str,
    ) -> None:
        with readable(path, key, "a tokenizer"):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                path, trust_remote_code=False, local_files_only=True
            )
        self._max_length = max_length
        special = self._tokenizer.get_added_vocab()
        self._special = sorted({*special, *self._tokenizer.all_special_tokens})
        log.warning("%s %s: this reward model reads no pictures", key, path)

    def inputs_of(self, group: RolloutGroup) -> Iterator[dict[str, torch.Tensor]]:
        """See `Conversations`."""
        turns = _turns(group.prompt)
        for completion in group.completions:
            conversation = [*turns, {"role": "assistant", "content": completion.text}]
            self._check_plain(group.prompt, conversation)
            with refusing(
                "tokenizer",
                f"prompt {group.prompt.id}: expected a conversation that the reward model's template takes",
                "leave the row out",
            ):
                token_ids = self._token_ids(conversation)
            _check_length(group.prompt, len(token_ids), self._max_length)
            inputs = torch.tensor([token_ids])
            yield {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}

    def _token_ids(self, conversation: list[dict[str, str]]) -> list[int]:
        tokenizer = self._tokenizer
        if tokenizer.chat_template is None:
            *turns, answer = conversation
            question = "\n".join(turn["content"] for turn in turns)
            return list(tokenizer(question, answer["content"])["input_ids"])
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        # A template that writes the first token itself would get a second one.
        has_start = tokenizer.bos_token and text.startswith(tokenizer.bos_token)
        encoding = tokenizer(text, add_special_tokens=not has_start)
        return list(encoding["input_ids"])

    def _check_plain(
        self,
        prompt: Prompt,
        conversation: list[dict[str, str]],
    ) -> None:
        """Refuse texts that the tokenizer would take for the end of a turn: the judge is not for them to lead."""
        for turn in conversation:
            for token in self._special:
                if token in turn["content"]:
                    raise Refused(
                        "special_token",
                        f"prompt {prompt.id}: expected texts without special tokens, got {token}; take it out",
                    )


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    turns = []
    for message in prompt.messages:
        texts = [part.text for part in message.parts if part.kind == "text"]
        turns.append({"role": message.role, "content": "".join(texts)})
    return turns


def _check_length(
    prompt: Prompt,
    num_tokens: int,
    max_length: int,
) -> None:
    if num_tokens > max_length:
        raise Refused(
            "prompt_too_long",
            f"prompt {prompt.id}: expected at most reward.judge.max_length = {max_length} tokens with its answer, got "
            f"{num_tokens}; raise it if the model reads more",
        )
