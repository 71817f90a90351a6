"""What comes back from vLLM: answers as groups, and log-probs of answers that were scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.vllm_api import CompletionOutput, RequestOutput
from common.chat import ChatEncoder
from common.protocols import GenerationRequest
from common.records import AnswerLogprobs, Completion, Dropped, RolloutGroup

_START_LABEL = "default"  # vLLM's version label before the first push


def to_group(
    request: GenerationRequest, output: RequestOutput, encoder: ChatEncoder
) -> RolloutGroup | Dropped:
    """The finished group, or Dropped: `media_token` when an answer holds one, `token_unknown` for one without a name.

    Embeddings are padded to round numbers; a policy may sample a row that no token stands for.
    """
    num_tokens = len(encoder.tokenizer)
    completions = []
    for sequence in output.outputs:
        completion = _completion(
            sequence,
            encoder,
            has_text=bool(request.stop),
        )
        if set(completion.token_ids).intersection(encoder.media_token_ids):
            return Dropped(
                request.id,
                "media_token",
                "an answer holds an image token although they are banned",
            )
        highest = max(completion.token_ids, default=0)
        if highest >= num_tokens:
            return Dropped(
                request.id,
                "token_unknown",
                f"an answer holds id {highest}, the tokenizer has {num_tokens} tokens; the embedding is padded",
            )
        completions.append(completion)
    # A greedy answer is sampled once, however many were asked for.
    if len(completions) < request.num_completions:
        completions *= request.num_completions
    prompt_ids = tuple(output.prompt_token_ids or ())
    return RolloutGroup(
        request.id,
        request.prompt,
        prompt_ids,
        prompt_ids.count(encoder.image_token_id),
        tuple(completions),
    )


def _completion(
    sequence: CompletionOutput, encoder: ChatEncoder, has_text: bool
) -> Completion:
    token_ids = tuple(sequence.token_ids)
    spans = sequence.weight_versions
    assert spans, "vLLM reports the weight version of every finished sequence"
    if has_text:
        # vLLM leaves an end in the text that is not marked as special.
        text = encoder.without_end_mark(sequence.text)
    else:
        text = encoder.decode(token_ids)
    return Completion(
        token_ids=token_ids,
        text=text,
        min_weight_version=_version(spans[0].version),
        max_weight_version=_version(spans[-1].version),
        finish_reason="stop" if sequence.finish_reason == "stop" else "length",
        token_logprobs=_sampled_logprobs(sequence),
    )


def _sampled_logprobs(sequence: CompletionOutput) -> tuple[float, ...] | None:
    """The log-prob of every sampled token; None where the request asked for none."""
    places: Any = sequence.logprobs
    if places is None:
        return None
    logprobs: list[float] = []
    for by_token, token in zip(places, sequence.token_ids, strict=True):
        logprobs.append(float(by_token[token].logprob))
    return tuple(logprobs)


def _version(label: str) -> int:
    return 0 if label == _START_LABEL else int(label)


def token_logprobs(
    output: RequestOutput, token_ids: Sequence[int]
) -> tuple[float, ...]:
    """Log-probs (nats) of an answer, of which all tokens but the last stand at the end of the prompt."""
    logprobs = []
    places = likely_logprobs(output, len(token_ids))
    for by_token, token in zip(places, token_ids, strict=True):
        logprobs.append(by_token[token])
    return tuple(logprobs)


def likely_logprobs(output: RequestOutput, num_tokens: int) -> AnswerLogprobs:
    """All log-probs that there are at the places of an answer of so many tokens."""
    # One dict by token id per position.
    in_prompt: Any = output.prompt_logprobs
    sampled: Any = output.outputs[0].logprobs
    start = len(in_prompt) - num_tokens + 1
    places = [in_prompt[place] for place in range(start, len(in_prompt))]
    places.append(sampled[0])
    answer: list[dict[int, float]] = []
    for by_token in places:
        answer.append(
            {token: float(entry.logprob) for token, entry in by_token.items()}
        )
    return tuple(answer)
