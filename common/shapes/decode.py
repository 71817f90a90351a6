"""Running a policy on pictures with plain transformers: greedy or sampled responses and response log-probs."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Responses to one question per picture, greedy unless a temperature is given; the image token is banned."""
    texts: list[str] = []
    for start in range(0, len(images), batch_size):
        rows = [
            prompt_ids(tokenizer, question)
            for question in asked[start : start + batch_size]
        ]
        width = max(map(len, rows))
        ids = torch.tensor(
            [[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows]
        )
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0}
            if temperature
            else {"do_sample": False}
        )
        out = model.generate(  # type: ignore[misc]  # its self type names a protocol that no model class meets
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixels(images[start : start + batch_size]),
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
    """Summed log-prob of each response with its end token, (batch,)."""
    prompt = prompt_ids(tokenizer, question)
    answers = [response_ids(tokenizer, response) for response in responses]
    width = max(map(len, answers))
    ids = torch.tensor(
        [
            prompt + answer + [tokenizer.pad_token_id] * (width - len(answer))
            for answer in answers
        ]
    )
    real = torch.tensor(
        [[1] * len(answer) + [0] * (width - len(answer)) for answer in answers]
    )
    mask = torch.cat(
        [torch.ones(len(answers), len(prompt), dtype=torch.long), real], dim=1
    )
    logits = model(
        input_ids=ids, attention_mask=mask, pixel_values=pixels(images)
    ).logits
    tail = slice(len(prompt) - 1, -1)
    logps = (
        logits[:, tail]
        .log_softmax(-1)
        .gather(-1, ids[:, len(prompt) :, None])
        .squeeze(-1)
    )
    summed: Tensor = (logps * real).sum(1)
    return summed
