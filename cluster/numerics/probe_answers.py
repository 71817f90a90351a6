"""Which answers learner and engines compare their log-probs of: to a few prompts of the run, of different pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.runtime.clients import RolloutClient
from common.chat import ChatEncoder
from common.config import Loop
from common.data.records_on_disk import fetch
from common.errors import Refused, UserError
from common.protocols import GenerationRequest
from common.records import Dropped, ProbeAnswer, Prompt
from common.row_faults import drop_report

CANDIDATES = 4
"""Prompts that are looked at for one that is taken."""
_LAST_RESORT = "yes"
"""The answer to a prompt that no engine answers."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A prompt that can be encoded, the tokens of its pictures, and how many tokens an answer may have."""

    prompt: Prompt
    num_image_tokens: int
    room: int


async def probe_answers(
    loop: Loop,
    encoder: ChatEncoder,
    prompt_sets: Sequence[Sequence[Prompt]],
    engine: RolloutClient,
) -> list[ProbeAnswer]:
    """References where the data has them, else greedy answers of the start policy.

    Args:
        loop: how many answers, and how long.
        prompt_sets: the first one that has prompts which can be encoded is used first.
        engine: holds the start policy.

    Raises:
        UserError: no prompt can be encoded.
    """
    refused: list[Dropped] = []
    candidates: list[_Candidate] = []
    for prompts in prompt_sets:
        for candidate in _encodable(prompts, encoder, refused):
            candidates.append(candidate)
            if len(candidates) == CANDIDATES * loop.probe_answers:
                break
        if len(candidates) >= loop.probe_answers:
            break
    if not candidates:
        raise UserError(
            f"data.prompts: expected a prompt that the policy can be given, got none of {len(refused)}; dropped "
            f"{drop_report(refused)}; correct the rows or the settings"
        )
    chosen = _varied(candidates, loop.probe_answers)
    lengths = [min(loop.probe_tokens, candidate.room) for candidate in chosen]
    sampled = await _greedy(engine, chosen, lengths)
    answers: list[ProbeAnswer] = []
    for candidate, length in zip(chosen, lengths, strict=True):
        prompt = candidate.prompt
        token_ids = sampled.get(prompt.id, ())
        if not token_ids:
            # A prompt that the engine refuses is counted where the run samples it.
            text = prompt.reference or _LAST_RESORT
            token_ids = encoder.encode_response(text)[:length]
        answers.append(ProbeAnswer(prompt, token_ids))
    return answers


def _encodable(
    prompts: Sequence[Prompt], encoder: ChatEncoder, refused: list[Dropped]
) -> Iterator[_Candidate]:
    """The prompts that learner and engines can be given, evenly spread over the set; the others go into `refused`.

    Which ones cannot, the loop counts when it gets to them.
    """
    for index in _spread(len(prompts)):
        prompt = fetch(prompts, index)
        if isinstance(prompt, Dropped):
            refused.append(prompt)
            continue
        try:
            encoded = encoder.encode_prompt(prompt)
            if prompt.reference:
                encoder.encode_response(prompt.reference)
        except Refused as error:
            refused.append(Dropped(prompt.id, error.reason, str(error)))
            continue
        room = encoder.max_length - len(encoded.token_ids)
        if room > 0:
            yield _Candidate(prompt, encoded.num_image_tokens, room)


def _spread(length: int, steps: int = 64) -> Iterator[int]:
    """All indices below `length`, the first `steps` of them spread over all: a set may lie sorted by its tasks."""
    stride = max(1, length // steps)
    for offset in range(stride):
        yield from range(offset, length, stride)


def _varied(candidates: Sequence[_Candidate], number: int) -> list[_Candidate]:
    """One of every number of image tokens first, so that all sizes of pictures are seen; then others, evenly spread."""
    of_new_size: list[_Candidate] = []
    others: list[_Candidate] = []
    sizes: set[int] = set()
    for candidate in candidates:
        is_new = candidate.num_image_tokens not in sizes
        sizes.add(candidate.num_image_tokens)
        (of_new_size if is_new else others).append(candidate)
    spread = [others[index] for index in _spread(len(others), number)]
    return [*of_new_size, *spread][:number]


async def _greedy(
    engine: RolloutClient, chosen: Sequence[_Candidate], lengths: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Sampled tokens by prompt id, of prompts without a reference."""
    requests: list[GenerationRequest] = []
    for candidate, length in zip(chosen, lengths, strict=True):
        prompt = candidate.prompt
        if not prompt.reference:
            requests.append(GenerationRequest(prompt.id, prompt, 1, 0.0, length))
    sampled: dict[str, tuple[int, ...]] = {}
    if not requests:
        return sampled
    for group in await engine.generate(requests):
        if not isinstance(group, Dropped):
            sampled[group.id] = group.completions[0].token_ids
    return sampled
