"""The reference of BDHS in plain Hugging Face: hiding image tokens by attention mask, and by leaving them out.

    masked      [ BOS  i0  i1  i2  i3  text  answer ]   mask 1 0 1 0 1 1 1   positions 0 . 1 . 2 3 4
    shortened   [ BOS      i1      i3  text  answer ]

Position ids count visible tokens only (ours; the paper is silent), which makes the two the same function. The masked
one is what the paper describes, the shortened one what the engine runs: 29 tokens in place of 2,880.

Models with three-dimensional positions (Qwen2.5-VL) follow the same rule: the visible tokens are an image of one row.
That makes (1, 1, 1) and (1, 1, 2) of the positions (time, height, width) of i1 and i3 above, and the text goes on at 3.
It is what the model itself counts for such an image, so no model class of ours is needed to serve it; where in the
picture a token lies stays in its features. Keeping the true positions would be another function, see the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from actors.bdhs.vision_features import vision_inputs
from common.chat import EncodedPrompt, has_grid_positions


def visible_mask(
    token_ids: Sequence[int],
    image_token_id: int,
    visible: Sequence[int],
) -> torch.Tensor:
    """Attention mask of shape (1, len(token_ids)), int64: 0 at the hidden image tokens.

    Args:
        token_ids: of the whole sequence.
        image_token_id: the token that stands for a piece of an image.
        visible: indices among the image tokens.
    """
    ids = torch.tensor([token_ids])
    is_image = ids == image_token_id
    image_index = is_image.cumsum(1) - 1
    visible_indices = torch.tensor(visible, dtype=torch.long)
    is_visible = torch.isin(image_index, visible_indices)
    return (~is_image | is_visible).long()


def visible_positions(mask: torch.Tensor) -> torch.Tensor:
    """(batch, length) position ids over visible tokens; a hidden one has its left neighbour's, which nobody reads."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def grid_positions(
    mask: torch.Tensor,
    is_image: torch.Tensor,
) -> torch.Tensor:
    """(3, 1, length) position ids (time, height, width) for images whose visible tokens are a grid of one row each.

    `mask` and `is_image` have shape (1, length). Hidden tokens have positions that nobody reads.
    """
    width = visible_positions(mask)
    is_visible_image = is_image & mask.bool()
    # Time and height of an image's one row are those of its first token; there is text between two images.
    corner = width.clone()
    image_of_token = (~is_image).cumsum(1)
    for image in image_of_token[is_visible_image].unique():
        of_image = is_visible_image & (image_of_token == image)
        corner[of_image] = width[of_image][:1]
    return torch.stack([corner, corner, width])


def masked_logits(
    model: Any,
    prompt: EncodedPrompt,
    response: Sequence[int],
    visible: Sequence[int],
    image_token_id: int,
) -> torch.Tensor:
    """Logits at the visible places, the other image tokens masked.

    Returns:
        Shape (num visible prompt tokens + len(response), vocabulary).
    """
    ids = torch.tensor([(*prompt.token_ids, *response)])
    mask = visible_mask(
        ids[0].tolist(),
        image_token_id,
        visible,
    )
    if has_grid_positions(model.config):
        position_ids = grid_positions(mask, ids == image_token_id)
    else:
        position_ids = visible_positions(mask)
    with torch.no_grad():
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids,
            **vision_inputs(prompt.model_inputs),
        )
    logits: torch.Tensor = output.logits[0, mask[0].bool()]
    return logits


def shortened_logits(
    model: Any,
    prompt: EncodedPrompt,
    response: Sequence[int],
    visible: Sequence[int],
    image_token_id: int,
) -> torch.Tensor:
    """The same logits, shape as for `masked_logits`, from the sequence without the hidden tokens.

    Positions are the model's own count: of a plain sequence, or of one with an image of one row.
    """
    # Features are computed before tokens are left out: every image token sees the whole picture.
    embeddings = shortened_embeddings(
        model,
        prompt,
        response,
        visible,
        image_token_id,
    )
    positions = {}
    if has_grid_positions(model.config):
        ids = torch.tensor([(*prompt.token_ids, *response)])
        mask = visible_mask(
            ids[0].tolist(),
            image_token_id,
            visible,
        )
        shortened_ids = ids[mask.bool()][None]
        # The grid counts patches before `merge` x `merge` of them become a token.
        merge = model.config.vision_config.spatial_merge_size
        is_image = shortened_ids == image_token_id
        grids = [[1, merge, merge * length] for length in _runs(is_image[0].tolist())]
        positions["position_ids"], _ = model.model.get_rope_index(
            shortened_ids,
            is_image.int(),
            torch.tensor(grids) if grids else None,
        )
    with torch.no_grad():
        logits: torch.Tensor = model(inputs_embeds=embeddings, **positions).logits[0]
    return logits


def _runs(is_image: Sequence[bool]) -> list[int]:
    """Lengths of the runs of image tokens, one run per image."""
    return [len(list(run)) for value, run in groupby(is_image) if value]


def shortened_embeddings(
    model: Any,
    prompt: EncodedPrompt,
    response: Sequence[int],
    visible: Sequence[int],
    image_token_id: int,
) -> torch.Tensor:
    """(1, visible length, hidden) input embeddings: text, and the image features that stay visible."""
    ids = torch.tensor([(*prompt.token_ids, *response)])
    mask = visible_mask(
        ids[0].tolist(),
        image_token_id,
        visible,
    )
    with torch.no_grad():
        embeddings: torch.Tensor = model.get_input_embeddings()(ids)
        output = model.get_image_features(**vision_inputs(prompt.model_inputs))
        # Some families return the features themselves, one tensor per image.
        per_image = getattr(output, "pooler_output", output)
        features = torch.cat(list(per_image)).to(embeddings.dtype)
        embeddings[ids == image_token_id] = features
    return embeddings[:, mask[0].bool()]


def token_logprobs(
    logits: torch.Tensor,
    response: Sequence[int],
) -> torch.Tensor:
    """(len(response),) log-probs in nats of a response that ends the sequence to which `logits` belong."""
    # The logits of a place predict the token after it.
    predicting = logits[-len(response) - 1 : -1]
    logprobs = predicting.float().log_softmax(-1)
    places = torch.tensor(response)[:, None]
    return logprobs.gather(1, places)[:, 0]
