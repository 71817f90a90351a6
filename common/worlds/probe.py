"""What a linear readout sees in the features of a policy's vision tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from common.worlds.batches import cell_of_patch, pixels
from common.worlds.scenes import NUM_CELLS

BATCH = 250


@torch.no_grad()
def cell_features(
    model: LlavaForConditionalGeneration, images: Sequence[Image.Image]
) -> Tensor:
    """Mean vision feature over the patches of every cell, (pictures x 9, width)."""
    # (patches, cells); a column sums to 1, so that the product below is a mean.
    membership = nn.functional.one_hot(cell_of_patch(), NUM_CELLS).float()
    membership /= membership.sum(0)
    batches = []
    for start in range(0, len(images), BATCH):
        seen = pixels(images[start : start + BATCH])
        states = model.model.vision_tower(seen).last_hidden_state
        # The first token is CLS.
        features = states[:, 1:]
        batches.append(torch.einsum("bpw,pc->bcw", features, membership))
    return torch.cat(batches).flatten(0, 1)


def fit_linear(
    features: Tensor,
    classes: Tensor,
    num_classes: int,
) -> nn.Linear:
    """A linear readout of features (rows, width) that names the class of each row, (rows,)."""
    head = nn.Linear(features.shape[1], num_classes)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=60, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(features), classes)
        loss.backward()
        return loss

    optimizer.step(closure)
    return head
