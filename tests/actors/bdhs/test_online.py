"""Online BDHS against a scripted policy whose weights change while it answers, and on vLLM."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from actors.bdhs.online import OnlineBdhsSampler
from actors.engine.vllm_engine import VllmEngine
from actors.image_tokens import ImageTokenCounter
from common.config import RunConfig
from common.config.overrides import load_config
from common.data.images import ImageStore
from common.protocols import GenerationRequest
from common.records import (
    Completion,
    Dropped,
    ImageRef,
    Message,
    Part,
    PreferencePair,
    Prompt,
    RolloutGroup,
)
from tests.actors.engines import Run
from tests.tiny_models import make_prompt

TRUTH = "There is a red circle at the top. There is a blue star at the left. There is a ring."
PROMPT = Prompt(
    "p",
    (Message("user", (Part("image"),)),),
    (ImageRef("00", "/none.png"),),
    TRUTH,
)
GroupPrompt: TypeAlias = tuple[str, Prompt]
"""Group id and prompt."""
Answer: TypeAlias = Callable[[GenerationRequest], tuple[str, int]]
"""Text of an answer, and the weight version that sampled it."""


def config_of(*overrides: str) -> RunConfig:
    only_bdhs = [
        "--mixture.online_fraction=1",
        "--mixture.online_bdhs_fraction=1",
    ]
    return load_config(None, [*only_bdhs, *overrides])


def draw(
    groups: Sequence[GroupPrompt],
    answer: Answer,
    config: RunConfig | None = None,
) -> list[PreferencePair | Dropped]:
    """Pairs of a policy that answers as scripted."""

    async def generate(requests: list[GenerationRequest]) -> list[RolloutGroup]:
        results = []
        for request in requests:
            text, version = answer(request)
            completion = Completion(
                (),
                text,
                version,
                9,
                "stop",
            )
            group = RolloutGroup(
                request.id,
                request.prompt,
                (),
                0,
                (completion,),
            )
            results.append(group)
        return results

    sampler = OnlineBdhsSampler(config or config_of(), lambda prompt: 10)
    return asyncio.run(sampler.pairs(groups, generate))


def seeded(request: GenerationRequest) -> tuple[str, int]:
    number = random.Random(request.seed).randrange(10**9)
    return f" a {number}.", 3


def test_a_pair_has_everything_the_loop_needs() -> None:
    (pair,) = draw([("2:p", PROMPT)], seeded)
    assert isinstance(pair, PreferencePair)
    assert (pair.id, pair.source, pair.weight_version) == ("2:p", "online_bdhs", 3)
    assert pair.prompt == PROMPT
    assert pair.chosen.text == TRUTH != pair.rejected.text
    # The reference was not sampled; the learner tokenizes it.
    assert pair.chosen.token_ids is None
    assert pair.prompt_token_ids is None


def test_the_version_is_that_of_the_oldest_sentence_of_the_attempt_that_counts() -> (
    None
):
    """The first attempt repeats the truth (version 1) and is repeated; the second's sentences are of 7, 5 and 6."""

    def answer(request: GenerationRequest) -> tuple[str, int]:
        _, attempt, sentence = request.id.rsplit("/", 2)
        if attempt == "1":
            rest = TRUTH[len(request.prefix) :]
            return rest[: rest.index(".") + 1], 1
        # One version per sentence: the weights change while the attempt is sampled.
        versions = (7, 5, 6)
        return " a cat.", versions[int(sentence)]

    config = config_of("--rollout.bdhs.flip_prob=0")
    (pair,) = draw([("0:p", PROMPT)], answer, config)
    assert isinstance(pair, PreferencePair)
    assert pair.weight_version == 5


def _rejected(groups: Sequence[GroupPrompt], *overrides: str) -> dict[str, str]:
    """Rejected texts by group id."""
    texts = {}
    for pair in draw(groups, seeded, config_of(*overrides)):
        assert isinstance(pair, PreferencePair)
        texts[pair.id] = pair.rejected.text
    return texts


def test_draws_follow_run_seed_and_group_id_and_nothing_else() -> None:
    groups = []
    for epoch in (0, 1):
        for name in ("a", "b", "c"):
            prompt = replace(PROMPT, id=name)
            groups.append((f"{epoch}:{name}", prompt))
    together = _rejected(groups)
    texts = set(together.values())
    assert len(texts) == 6
    # One epoch at a time, and the first one backwards.
    second_epoch = _rejected(groups[3:])
    first_epoch = _rejected(groups[2::-1])
    assert second_epoch | first_epoch == together
    for seed in ("--run.seed=1", "--rollout.bdhs.seed=1"):
        others = _rejected(groups, seed)
        assert texts.isdisjoint(others.values())


def test_one_result_per_group_in_order_with_reasons() -> None:
    without_truth = replace(PROMPT, reference=None)
    without_images = replace(PROMPT, images=())
    groups = [("0:a", without_truth), ("0:b", PROMPT), ("0:c", without_images)]
    no_truth, pair, blind = draw(groups, seeded)
    assert no_truth == Dropped(
        "0:a", "no_reference", "BDHS needs a true answer to corrupt"
    )
    assert isinstance(pair, PreferencePair)
    assert pair.id == "0:b"
    assert isinstance(blind, Dropped)
    assert (blind.id, blind.reason) == ("0:c", "image_count")


@pytest.mark.real
def test_an_engine_draws_pairs(
    engine: VllmEngine,
    run: Run,
    store: ImageStore,
    policy_path: Path,
) -> None:
    config = config_of(
        f"--model.path={policy_path}",
        "--rollout.bdhs.rho=0.5",
        "--rollout.bdhs.max_attempts=1",
    )
    sampler = OnlineBdhsSampler(config, ImageTokenCounter(engine.encoder))
    groups = []
    for seed in range(3):
        prompt = replace(make_prompt(store, seed), reference=TRUTH)
        groups.append((f"0:{prompt.id}", prompt))
    results = run(sampler.pairs(groups, engine.generate))
    for (group_id, _), result in zip(groups, results, strict=True):
        assert result.id == group_id
        if isinstance(result, PreferencePair):
            assert result.weight_version == engine.weight_version
        else:
            assert result.reason in {"cut_off", "empty"}
