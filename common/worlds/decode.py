"""Runs a policy on pictures with plain transformers: greedy or sampled responses, and log-probs of responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from common.worlds.batches import pixels, prompt_ids, response_ids

MAX_NEW_TOKENS = 96


@dataclass(frozen=True, slots=True)
class _PaddedIds:
    """Token ids and their mask, (rows, length) both; padding has 0 in the mask."""

    ids: Tensor
    mask: Tensor


@torch.no_grad()
def generate(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    images: Sequence[Image.Image],
    asked: Sequence[str],
    *,
    temperature: float = 0.0,
    batch_size: int = 64,
) -> list[str]:
    """One response per picture and its question, without special tokens.

    Args:
        asked: one question per picture.
        temperature: 0 is greedy.
        batch_size: responses that are generated at once.
    """
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        # Without top_k = 0, transformers samples from the 50 likeliest tokens alone.
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    texts: list[str] = []
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        prompts = [prompt_ids(tokenizer, question) for question in asked[batch]]
        # At the left, so that all rows end where generation begins.
        padded = _pad(prompts, tokenizer, side="left")
        out = model.generate(  # type: ignore[misc]  # its self type names a protocol that no model class meets
            input_ids=padded.ids,
            attention_mask=padded.mask,
            pixel_values=pixels(images[batch]),
            max_new_tokens=MAX_NEW_TOKENS,
            # An untrained policy may say it, and then has more image tokens than images.
            suppress_tokens=[model.config.image_token_id],
            **sampling,
        )
        prompt_width = padded.ids.shape[1]
        new_ids = out[:, prompt_width:]
        texts += tokenizer.batch_decode(new_ids, skip_special_tokens=True)
    return texts


@torch.no_grad()
def response_logps(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    images: Sequence[Image.Image],
    responses: Sequence[str],
    question: str,
) -> Tensor:
    """Summed log-prob (nats) of each response with its end token, given its picture and one question, (batch,)."""
    prompt = prompt_ids(tokenizer, question)
    answers = [response_ids(tokenizer, response) for response in responses]
    # At the right, so that all answers begin right after the prompt.
    padded = _pad(answers, tokenizer, side="right")
    prompts = torch.tensor(prompt).expand(len(answers), -1)
    prompt_mask = torch.ones_like(prompts)
    output = model(
        input_ids=torch.cat([prompts, padded.ids], dim=1),
        attention_mask=torch.cat([prompt_mask, padded.mask], dim=1),
        pixel_values=pixels(images),
    )
    # The logits at a position predict the token after it.
    answer_logits = output.logits[:, len(prompt) - 1 : -1]
    logps = answer_logits.log_softmax(-1)
    token_logps = logps.gather(-1, padded.ids[:, :, None]).squeeze(-1)
    summed: Tensor = (token_logps * padded.mask).sum(1)
    return summed


def _pad(
    rows: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    side: Literal["left", "right"],
) -> _PaddedIds:
    """Bring rows of token ids to the length of the longest one."""
    width = max(len(row) for row in rows)
    shape = (len(rows), width)
    ids = torch.full(shape, tokenizer.pad_token_id)
    mask = torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        start = 0
        if side == "left":
            start = width - len(row)
        end = start + len(row)
        ids[number, start:end] = torch.tensor(row)
        mask[number, start:end] = 1
    return _PaddedIds(ids, mask)
