"""The learner's side of the numerics gate: log-probs of a few answers under the weights that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from common.errors import UserError
from common.records import LIKELIEST, AnswerLogprobs, LogprobProbe, ProbeAnswer
from learner.forward.logps import CompletionLogps
from learner.model.models import Models


class Probe:
    """The answers that are scored.

    Args:
        models: with the policy.
        answers: to score.
        rows: of a forward; so many have room.

    Raises:
        UserError: a prompt cannot be encoded, or an answer is empty or holds media tokens.
    """

    def __init__(
        self, models: Models, answers: Sequence[ProbeAnswer], rows: int
    ) -> None:
        self._models = models
        self._answers = tuple(answers)
        self._rows = rows
        media_token_ids = models.collator.encoder.media_token_ids
        for answer in answers:
            media = set(answer.token_ids) & set(media_token_ids)
            if not answer.token_ids or media:
                raise UserError(
                    f"probe: expected at least one response token and no media token, got {len(answer.token_ids)} "
                    f"tokens with media tokens {sorted(media)}; probe with tokens the policy may sample"
                )
            # Raises if the prompt cannot be encoded.
            models.collator.prompt(answer.prompt)

    def now(self) -> LogprobProbe:
        """Under the weights of this moment (collective)."""
        return LogprobProbe(self._answers, self._logprobs())

    @torch.no_grad()
    def _logprobs(self) -> tuple[AnswerLogprobs, ...]:
        models = self._models
        collator = models.collator
        policy = models.engine.module
        # Without dropout, as an engine scores it.
        policy.eval()
        logprobs: list[AnswerLogprobs] = []
        for first in range(0, len(self._answers), self._rows):
            rows = []
            for answer in self._answers[first : first + self._rows]:
                rows.append((collator.prompt(answer.prompt), answer.token_ids))
            batch = collator.rows(rows).to(models.device, models.dtype)
            scored = policy(batch, likeliest=LIKELIEST)
            for row, (_, token_ids) in enumerate(rows):
                logprobs.append(_of_row(scored, row, token_ids))
        policy.train()
        return tuple(logprobs)


def _of_row(
    scored: CompletionLogps, row: int, token_ids: Sequence[int]
) -> AnswerLogprobs:
    """The answer's token first, then the likeliest ones, at every place of a row."""
    likely_ids: Any = scored.likely_ids
    likely_logps: Any = scored.likely_logps
    length = len(token_ids)
    logps = scored.token_logps[row, :length].tolist()
    ids = likely_ids[row, :length].tolist()
    values = likely_logps[row, :length].tolist()
    places: list[dict[int, float]] = []
    for place, token in enumerate(token_ids):
        by_token = {token: logps[place]}
        for other, logp in zip(ids[place], values[place], strict=True):
            by_token.setdefault(other, logp)
        places.append(by_token)
    return tuple(places)
