"""Runs a policy on pictures with plain transformers: greedy or sampled responses, and log-probs of responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from common.shapes.batches import pixels, prompt_ids, response_ids
from common.shapes.language import CAPTION_PROMPTS

MAX_NEW_TOKENS = 96


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
    """One response per picture and its question; greedy unless a temperature is given, the image token banned."""
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    texts: list[str] = []
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        rows = [prompt_ids(tokenizer, question) for question in asked[batch]]
        width = max(len(row) for row in rows)
        # Padding stands at the left, so that all rows end where generation begins.
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, width - len(row) :] = torch.tensor(row)
            mask[number, width - len(row) :] = 1
        out = model.generate(  # type: ignore[misc]  # its self type names a protocol that no model class meets
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixels(images[batch]),
            max_new_tokens=MAX_NEW_TOKENS,
            suppress_tokens=[model.config.image_token_id],
            **sampling,
        )
        texts += tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return texts


@torch.no_grad()
def response_logps(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    images: Sequence[Image.Image],
    responses: Sequence[str],
    question: str = CAPTION_PROMPTS[0],
) -> Tensor:
    """Summed log-prob (nats) of each response with its end token, given its picture and one question, (batch,)."""
    prompt = prompt_ids(tokenizer, question)
    answers = [response_ids(tokenizer, response) for response in responses]
    width = max(len(answer) for answer in answers)
    answer_ids = torch.full((len(answers), width), tokenizer.pad_token_id)
    answer_mask = torch.zeros((len(answers), width), dtype=torch.long)
    for row, answer in enumerate(answers):
        answer_ids[row, : len(answer)] = torch.tensor(answer)
        answer_mask[row, : len(answer)] = 1
    shared_ids = torch.tensor(prompt).expand(len(answers), -1)
    logits = model(
        input_ids=torch.cat([shared_ids, answer_ids], dim=1),
        attention_mask=torch.cat([torch.ones_like(shared_ids), answer_mask], dim=1),
        pixel_values=pixels(images),
    ).logits
    # The logits at a position predict the token after it.
    predicted = logits[:, len(prompt) - 1 : -1].log_softmax(-1)
    token_logps = predicted.gather(-1, answer_ids[:, :, None]).squeeze(-1)
    summed: Tensor = (token_logps * answer_mask).sum(1)
    return summed
