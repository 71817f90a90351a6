"""Probes of one answer, as most tests want them."""

from __future__ import annotations

from collections.abc import Sequence

from common.records import (
    AnswerLogprobs,
    LogprobProbe,
    ProbeAnswer,
    Prompt,
)


def one_answer(prompt: Prompt, token_ids: Sequence[int]) -> list[ProbeAnswer]:
    return [ProbeAnswer(prompt, tuple(token_ids))]


def of_tokens(token_ids: Sequence[int], logprobs: Sequence[float]) -> AnswerLogprobs:
    """Log-probs of the answer's tokens, and of no other."""
    return [{token: value} for token, value in zip(token_ids, logprobs, strict=True)]


def probe_of(
    prompt: Prompt, token_ids: Sequence[int], logprobs: Sequence[float]
) -> LogprobProbe:
    """Log-probs of one answer's tokens."""
    answers = tuple(one_answer(prompt, token_ids))
    return LogprobProbe(answers, (of_tokens(token_ids, logprobs),))


def token_logprobs(probe: LogprobProbe | None, index: int = 0) -> list[float]:
    """The learner's log-probs of the tokens of one answer."""
    assert probe is not None
    answer, logprobs = probe.answers[index], probe.logprobs[index]
    values = []
    for token, by_token in zip(answer.token_ids, logprobs, strict=True):
        values.append(by_token[token])
    return values
