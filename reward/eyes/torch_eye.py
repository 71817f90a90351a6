"""An eye in this process: a transformers model that is asked one question at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from common import config
from common.chat import ChatEncoder
from common.chat.encoder import EncodedPrompt
from common.chat.options import decisive_tokens
from common.errors import Refused
from common.loading import readable
from common.protocols import Question, Reply
from common.records import Dropped


class TorchEye:
    """Implements `common.protocols.Eye`.

    Raises:
        UserError: the folder holds no model that can be loaded.
    """

    name = "torch"

    def __init__(
        self,
        settings: config.TorchEye,
        key: str = "reward.judge.path",
    ) -> None:
        self._encoder = ChatEncoder(
            settings.path,
            settings.max_length,
            settings.chat_template,
            key,
            settings,
        )
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        with readable(settings.path, key, "an architecture and weights"):
            model = AutoModelForImageTextToText.from_pretrained(
                settings.path,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                dtype=getattr(torch, settings.dtype),
            )
        self._model = model.eval().to(self._device)
        self._beginnings: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
        # Callers come from several threads; forwards side by side would only slow each other.
        self._lock = threading.Lock()

    async def ask(
        self,
        questions: Sequence[Question],
    ) -> list[Reply | Dropped]:
        """One reply per question, in order; Dropped where the prompt cannot be given to the model."""
        # The forwards run in a thread: the worker goes on answering its other callers.
        return await asyncio.to_thread(self._ask_all, tuple(questions))

    def _ask_all(
        self,
        questions: Sequence[Question],
    ) -> list[Reply | Dropped]:
        with self._lock:
            return [self._ask(question) for question in questions]

    def _ask(
        self,
        question: Question,
    ) -> Reply | Dropped:
        try:
            encoded = self._encoder.encode_prompt(question.prompt)
            if question.options:
                return Reply(logprobs=self._logprobs(encoded, question.options))
            return Reply(text=self._text(encoded, question.max_tokens))
        except Refused as error:
            return Dropped(question.prompt.id, error.reason, str(error))

    def _logprobs(
        self,
        encoded: EncodedPrompt,
        options: tuple[str, ...],
    ) -> tuple[float, ...]:
        beginnings = self._decisive(options)
        # One forward for all options that differ in their last decisive token only; mostly that is all of them.
        rows: dict[tuple[int, ...], torch.Tensor] = {}
        logprobs: list[float] = []
        for tokens in beginnings:
            prefix = tokens[:-1]
            if prefix not in rows:
                rows[prefix] = self._next_logprobs(encoded, prefix)
            of_tokens = rows[prefix][range(len(tokens)), list(tokens)]
            logprobs.append(float(of_tokens.sum()))
        return tuple(logprobs)

    def _decisive(
        self,
        options: tuple[str, ...],
    ) -> list[tuple[int, ...]]:
        if options not in self._beginnings:
            token_ids = [self._encoder.encode_response(option) for option in options]
            self._beginnings[options] = decisive_tokens(options, token_ids)
        return self._beginnings[options]

    @torch.no_grad()
    def _next_logprobs(
        self,
        encoded: EncodedPrompt,
        prefix: tuple[int, ...],
    ) -> torch.Tensor:
        """Log-probs of shape (1 + len(prefix), vocabulary): what follows the prompt and each token of the prefix."""
        inputs = self._inputs(encoded, prefix)
        logits = self._model(**inputs).logits[0, -1 - len(prefix) :]
        logprobs: torch.Tensor = logits.float().log_softmax(-1).cpu()
        return logprobs

    @torch.no_grad()
    def _text(
        self,
        encoded: EncodedPrompt,
        max_tokens: int,
    ) -> str:
        room = self._encoder.max_length - len(encoded.token_ids)
        sequence = self._model.generate(
            **self._inputs(encoded, ()),
            max_new_tokens=min(max_tokens, room),
            do_sample=False,
            suppress_tokens=list(self._encoder.media_token_ids),
        )
        answer = sequence[0, len(encoded.token_ids) :]
        return self._encoder.decode(tuple(answer.tolist()))

    def _inputs(
        self,
        encoded: EncodedPrompt,
        suffix: tuple[int, ...],
    ) -> dict[str, Any]:
        """The model's inputs for the prompt and tokens behind it."""
        num_tokens = len(encoded.token_ids)
        token_ids = torch.tensor([[*encoded.token_ids, *suffix]])
        inputs = {"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}
        for name, tensor in encoded.model_inputs.items():
            # A mark per token, such as mm_token_type_ids; 0 is text.
            if tensor.shape == (1, num_tokens):
                zeros = tensor.new_zeros(1, len(suffix))
                tensor = torch.cat([tensor, zeros], dim=1)
            if tensor.is_floating_point():
                tensor = tensor.to(self._model.dtype)
            inputs[name] = tensor
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}
