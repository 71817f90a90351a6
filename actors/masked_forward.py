"""The reference of BDHS in plain Hugging Face: hiding image tokens by attention mask, and by leaving them out.

    masked      [ BOS  i0  i1  i2  i3  text  answer ]   mask 1 0 1 0 0 1 1   positions 0 . 1 . . 2 3
    shortened   [ BOS      i1          text  answer ]

Position ids count visible tokens only (ours; the paper is silent), which makes the two the same function. The masked
one is what the paper describes, the shortened one what the engine runs: 29 tokens in place of 2,880.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from common.chat import EncodedPrompt
from common.errors import UserError


def visible_mask(token_ids: Sequence[int], image_token_id: int, visible: Sequence[int]) -> torch.Tensor:
    """(1, len(token_ids)) int64: 0 at the image tokens whose index among the image tokens is not in `visible`."""
    ids = torch.tensor([token_ids])
    is_image = ids == image_token_id
    index = is_image.cumsum(1) - 1
    return (~is_image | torch.isin(index, torch.tensor(visible, dtype=torch.long))).long()


def visible_positions(mask: torch.Tensor) -> torch.Tensor:
    """(batch, length) position ids over visible tokens; a hidden one has its left neighbour's, which nobody sees."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def masked_logits(
    model: Any, prompt: EncodedPrompt, response: Sequence[int], visible: Sequence[int], image_token_id: int
) -> torch.Tensor:
    """(num visible prompt tokens + len(response), vocabulary) logits of the visible places, hidden ones masked.

    Raises:
        UserError: the model counts positions in three dimensions (Qwen), for which this mask is not defined.
    """
    _check_positions(model)
    token_ids = (*prompt.token_ids, *response)
    mask = visible_mask(token_ids, image_token_id, visible)
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([token_ids]),
            attention_mask=mask,
            position_ids=visible_positions(mask),
            **prompt.model_inputs,
        )
    logits: torch.Tensor = output.logits[0, mask[0].bool()]
    return logits


def shortened_logits(
    model: Any, prompt: EncodedPrompt, response: Sequence[int], visible: Sequence[int], image_token_id: int
) -> torch.Tensor:
    """The same logits from the sequence without the hidden tokens. Shape and errors as for `masked_logits`."""
    _check_positions(model)
    embeddings = shortened_embeddings(model, prompt, response, visible, image_token_id)
    with torch.no_grad():
        logits: torch.Tensor = model(inputs_embeds=embeddings).logits[0]
    return logits


def shortened_embeddings(
    model: Any, prompt: EncodedPrompt, response: Sequence[int], visible: Sequence[int], image_token_id: int
) -> torch.Tensor:
    """(1, visible length, hidden) input embeddings: text, and the image features that stay visible."""
    ids = torch.tensor([(*prompt.token_ids, *response)])
    mask = visible_mask(ids[0].tolist(), image_token_id, visible)
    with torch.no_grad():
        embeddings: torch.Tensor = model.get_input_embeddings()(ids)
        found = model.get_image_features(**prompt.model_inputs)
        features = getattr(found, "pooler_output", found)
        embeddings[ids == image_token_id] = torch.cat(list(features)).to(embeddings.dtype)
    return embeddings[:, mask[0].bool()]


def token_logprobs(logits: torch.Tensor, response: Sequence[int]) -> torch.Tensor:
    """(len(response),) log-probs in nats of a response that ends the sequence `logits` belongs to."""
    before = logits[-len(response) - 1 : -1].float().log_softmax(-1)
    return before.gather(1, torch.tensor(response)[:, None])[:, 0]


def _check_positions(model: Any) -> None:
    text = model.config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if "mrope_section" in rope:
        raise UserError(
            f"bdhs reference: expected a model with one-dimensional positions, got {model.config.model_type}; "
            "compare LLaVA-1.5 or LLaVA-NeXT"
        )
