"""A policy's scorecard: ask greedily, measure, compare with the start policy. Knows neither Ray nor vLLM."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from pydantic import TypeAdapter

from common.config import Evaluation
from common.images import ImageStore
from common.paths import replace_file
from common.protocols import GenerationRequest
from common.records import Dropped, Prompt, RolloutGroup, Verdict
from common.shapes.prompts import caption_prompts, question_prompts
from common.shapes.scenes import Split
from reward.scorecard import Answers, Scorecard, make_scorecard, win_of

Generate: TypeAlias = Callable[
    [list[GenerationRequest]], Awaitable[list[RolloutGroup | Dropped]]
]
JudgeAll: TypeAlias = Callable[[list[RolloutGroup]], Awaitable[list[Verdict | Dropped]]]

Measured: TypeAlias = tuple[Scorecard, Answers]

_ANSWERS = TypeAdapter(Answers)

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 64
"""Prompts per call of a rollout worker: enough to fill its engine, few enough to see progress."""

SEED = 0
"""The scenes of an evaluation are the same in every run, whatever its seed."""


async def evaluate(
    generate: Generate,
    judge: JudgeAll,
    captions: Sequence[Prompt],
    questions: Sequence[Prompt],
    baseline: Answers | None,
    settings: Evaluation,
    max_tokens: int = 96,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Ask greedily, measure, and compare captions with those of the start policy.

    Args:
        baseline: answers of the start policy to the same prompts; None says that this is the start policy.
        on_progress: called with the number of prompts answered since its last call.

    Returns:
        The scorecard and the answers, which serve as `baseline` of the next policy. What could not be generated or
        judged is counted in `scorecard.dropped`.
    """
    told, lost = await _ask(generate, captions, max_tokens, on_progress)
    answered, lost_too = await _ask(generate, questions, max_tokens, on_progress)
    answers = Answers(told, answered, (*lost, *lost_too))
    return await score(judge, answers, baseline, settings), answers


async def score(
    judge: JudgeAll, answers: Answers, baseline: Answers | None, settings: Evaluation
) -> Scorecard:
    """The scorecard of answers that are there already; arguments as of `evaluate`."""
    wins, failed = (
        (None, []) if baseline is None else await _compare(judge, answers, baseline)
    )
    return make_scorecard(answers, wins, settings.bootstrap_samples, failed)


def write_measured(path: Path, measured: Measured) -> None:
    """Keep a scorecard and its answers, so that a resume or another judge reads them instead of asking again."""
    card, answers = measured
    content = {
        "scorecard": card.model_dump(mode="json"),
        "answers": _ANSWERS.dump_python(answers, mode="json"),
    }
    replace_file(path, json.dumps(content))


def read_measured(path: Path) -> Measured:
    """What `write_measured` wrote."""
    found = json.loads(path.read_text())
    return Scorecard.model_validate(found["scorecard"]), _ANSWERS.validate_python(
        found["answers"], strict=False
    )


def evaluation_prompts(
    split: Split, scenes: int, settings: Evaluation, store: ImageStore
) -> tuple[list[Prompt], list[Prompt]]:
    """Caption and question prompts of the first `scenes` scenes of a split."""
    questions = question_prompts(
        split, scenes, SEED, store, settings.questions_per_scene
    )
    return caption_prompts(split, scenes, SEED, store), questions


async def _ask(
    generate: Generate,
    prompts: Sequence[Prompt],
    max_tokens: int,
    on_progress: Callable[[int], None],
) -> tuple[tuple[RolloutGroup, ...], list[Dropped]]:
    requests = [
        GenerationRequest(f"evaluation/{prompt.id}", prompt, 1, 0.0, max_tokens)
        for prompt in prompts
    ]
    answered, dropped = await _in_chunks(generate, requests, on_progress)
    return tuple(group for _, group in answered), dropped


async def _compare(
    judge: JudgeAll, answers: Answers, baseline: Answers
) -> tuple[dict[str, float], list[Dropped]]:
    """Caption prompt id -> win of `answers` over `baseline`, and the comparisons that failed."""
    before = {group.prompt.id: group.completions[0] for group in baseline.captions}
    both = [group for group in answers.captions if group.prompt.id in before]
    versus = [
        replace(group, completions=(group.completions[0], before[group.prompt.id]))
        for group in both
    ]
    judged, failed = await _in_chunks(judge, versus)
    missing = [
        Dropped(group.id, "no_baseline")
        for group in answers.captions
        if group.prompt.id not in before
    ]
    return {group.prompt.id: win_of(verdict) for group, verdict in judged}, [
        *missing,
        *failed,
    ]


async def _in_chunks(
    call: Callable[[list[Item]], Awaitable[list[Result | Dropped]]],
    items: Sequence[Item],
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[list[tuple[Item, Result]], list[Dropped]]:
    """Each item with its result, `CHUNK` items per call, and the drops."""
    done: list[tuple[Item, Result]] = []
    dropped: list[Dropped] = []
    for start in range(0, len(items), CHUNK):
        chunk = list(items[start : start + CHUNK])
        for item, result in zip(chunk, await call(chunk), strict=True):
            if isinstance(result, Dropped):
                dropped.append(result)
            else:
                done.append((item, result))
        on_progress(len(chunk))
    return done, dropped
