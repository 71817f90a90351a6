"""How long the longest row of a run is: what memory and work are planned for."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.planner.shape import ModelShape
from common.config import RunConfig
from learner.losses import make_loss


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokens of the largest forward of a rank, in its language model.

    Attributes:
        pairs: in it.
        tokens: that go through all layers but the last.
        predicted: tokens whose log-probs are asked for.
        prompt, completion: of one sequence.
        image_tokens: of all its pictures, once for every row that they stand in.
        shares_prompt: whether a prompt stands once for both completions.
    """

    pairs: int
    tokens: int
    predicted: int
    prompt: int
    completion: int
    image_tokens: int
    shares_prompt: bool


def longest_rows(
    config: RunConfig,
    shape: ModelShape,
) -> Rows:
    """The forward of `learner.micro_batch` pairs whose completions have `rollout.max_tokens` and fill `max_length`.

    A prompt has as many pictures as it may, and as fit.
    """
    learner = config.learner
    length = config.model.max_length
    completion = min(config.rollout.max_tokens, length // 2)
    prompt = length - completion
    plain = any(make_loss(loss).needs.plain_rows for loss in learner.losses)
    shares_prompt = learner.fast.share_prompt and shape.takes_trees and not plain
    per_pair = prompt + 2 * completion if shares_prompt else 2 * length
    pairs = learner.micro_batch
    if learner.fast.pack_tokens:
        # A pair that is longer than the limit has a forward of its own.
        pairs = max(1, learner.fast.pack_tokens // per_pair)
    limit = shape.picture_tokens(config.model)
    most = prompt if limit is None else limit * config.model.max_images
    image_tokens = min(most, prompt)
    copies = 1 if shares_prompt else 2
    return Rows(
        pairs=pairs,
        tokens=pairs * per_pair,
        predicted=pairs * 2 * completion,
        prompt=prompt,
        completion=completion,
        image_tokens=pairs * image_tokens * copies,
        shares_prompt=shares_prompt,
    )
