"""The reference of shortened sequences: a policy in plain transformers, float32, with image tokens masked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from benchmarks.masked_forward import masked_logits
from common.chat import ChatEncoder, EncodedPrompt


class MaskedPolicy:
    """A policy that can see only some of the tokens of its image."""

    def __init__(self, path: Path) -> None:
        self.encoder = ChatEncoder(path, 512)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=torch.float32
        )
        self.model: Any = model.eval()

    def arguments(
        self,
        prompt: EncodedPrompt,
        response: Sequence[int],
        visible: Sequence[int],
    ) -> tuple[Any, ...]:
        """Arguments of the functions of benchmarks.masked_forward."""
        return self.model, prompt, response, visible, self.encoder.image_token_id

    def is_greedy(
        self,
        answer: tuple[int, ...],
        prompt: EncodedPrompt,
        prefix: tuple[int, ...],
        visible: Sequence[int],
        num_tokens: int,
    ) -> bool:
        """Whether this is the greedy answer of at most `num_tokens` tokens, media tokens banned.

        One forward over the whole answer: if every token is the greedy one after those before it, so is the answer.
        """
        eos = self.encoder.eos_token_id
        if eos in answer[:-1]:
            return False
        # An answer that is not full must have ended.
        is_full = len(answer) == num_tokens
        has_ended = answer[-1:] == (eos,)
        if not is_full and not has_ended:
            return False
        sequence = (*prefix, *answer)
        logits = masked_logits(*self.arguments(prompt, sequence, visible))
        # The logits of a place predict the token after it.
        predicting = logits[-len(answer) - 1 : -1]
        banned = list(self.encoder.media_token_ids)
        predicting[:, banned] = -torch.inf
        predicted = predicting.argmax(-1).tolist()
        return tuple(predicted) == answer
