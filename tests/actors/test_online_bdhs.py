"""Online BDHS against a scripted policy whose weights change while it answers, and on vLLM."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.image_tokens import ImageTokenCounter
from actors.online_bdhs import OnlineBdhsSampler
from common.config import RunConfig
from common.images import ImageStore
from common.overrides import load_config
from common.protocols import Engine, GenerationRequest
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
from tests.tiny_models import make_prompt

TRUTH = "There is a red circle at the top. There is a blue star at the left. There is a ring."
PROMPT = Prompt(
    "p", (Message("user", (Part("image"),)),), (ImageRef("00", "/none.png"),), TRUTH
)
Answer = Callable[[GenerationRequest], tuple[str, int]]


def config_of(*words: str) -> RunConfig:
    return load_config(
        None,
        ["--mixture.online_fraction=1", "--mixture.online_bdhs_fraction=1", *words],
    )


def draw(
    groups: Sequence[tuple[str, Prompt]],
    answer: Answer,
    config: RunConfig | None = None,
) -> list[PreferencePair | Dropped]:
    """`answer` gives the text and the weight version of each request."""

    async def generate(requests: list[GenerationRequest]) -> list[RolloutGroup]:
        made = [(request, *answer(request)) for request in requests]
        return [
            RolloutGroup(r.id, r.prompt, (), 0, (Completion((), text, v, 9, "stop"),))
            for r, text, v in made
        ]

    return asyncio.run(
        OnlineBdhsSampler(config or config_of(), lambda prompt: 10).pairs(
            groups, generate
        )
    )


def seeded(request: GenerationRequest) -> tuple[str, int]:
    return f" a {random.Random(request.seed).randrange(10**9)}.", 3


def test_a_pair_has_everything_the_loop_needs() -> None:
    (pair,) = draw([("2:p", PROMPT)], seeded)
    assert isinstance(pair, PreferencePair)
    assert (pair.id, pair.prompt, pair.source, pair.weight_version) == (
        "2:p",
        PROMPT,
        "online_bdhs",
        3,
    )
    assert pair.chosen.text == TRUTH != pair.rejected.text
    assert pair.chosen.token_ids is None is pair.prompt_token_ids


def test_the_version_is_that_of_the_oldest_sentence_of_the_attempt_that_counts() -> (
    None
):
    """The first attempt repeats the truth (version 1) and is repeated; the second's sentences are of 7, 5 and 6."""

    def answer(request: GenerationRequest) -> tuple[str, int]:
        _, attempt, sentence = request.id.rsplit("/", 2)
        rest = TRUTH[len(request.prefix) :]
        return (
            (rest[: rest.index(".") + 1], 1)
            if attempt == "1"
            else (" a cat.", (7, 5, 6)[int(sentence)])
        )

    config = config_of("--rollout.bdhs.flip_prob=0")
    (pair,) = draw([("0:p", PROMPT)], answer, config)
    assert isinstance(pair, PreferencePair)
    assert pair.weight_version == 5


def test_draws_follow_run_seed_and_group_id_and_nothing_else() -> None:
    groups = [
        (f"{epoch}:{name}", replace(PROMPT, id=name))
        for epoch in (0, 1)
        for name in ("a", "b", "c")
    ]

    def texts(some: Sequence[tuple[str, Prompt]], *words: str) -> dict[str, str]:
        pairs = draw(some, seeded, config_of(*words))
        return {
            pair.id: pair.rejected.text
            for pair in pairs
            if isinstance(pair, PreferencePair)
        }

    together = texts(groups)
    assert {**texts(groups[3:]), **texts(groups[2::-1])} == together
    assert len(set(together.values())) == 6
    assert not set(texts(groups, "--run.seed=1").values()) & set(together.values())
    assert not set(texts(groups, "--rollout.bdhs.seed=1").values()) & set(
        together.values()
    )


def test_one_result_per_group_in_order_with_reasons() -> None:
    bare, two = (
        replace(PROMPT, reference=None),
        replace(PROMPT, images=PROMPT.images * 2),
    )
    found = draw([("0:a", bare), ("0:b", PROMPT), ("0:c", two)], seeded)
    assert [getattr(each, "reason", "pair") for each in found] == [
        "no_reference",
        "pair",
        "image_count",
    ]
    assert [each.id for each in found] == ["0:a", "0:b", "0:c"]


@pytest.mark.real
def test_an_engine_draws_pairs(
    engine: Engine, run: Callable[[Any], Any], store: ImageStore, policy_path: Path
) -> None:
    encoder = engine.encoder  # type: ignore[attr-defined]
    config = config_of(
        f"--model.path={policy_path}",
        "--rollout.bdhs.rho=0.5",
        "--rollout.bdhs.max_attempts=1",
    )
    sampler = OnlineBdhsSampler(config, ImageTokenCounter(encoder))
    prompts = [replace(make_prompt(store, seed), reference=TRUTH) for seed in range(3)]
    groups = [(f"0:{prompt.id}", prompt) for prompt in prompts]
    results = run(sampler.pairs(groups, engine.generate))
    assert [each.id for each in results] == [group_id for group_id, _ in groups]
    assert {getattr(each, "reason", "pair") for each in results} <= {
        "pair",
        "cut_off",
        "empty",
    }
    assert all(
        each.weight_version == engine.weight_version
        for each in results
        if isinstance(each, PreferencePair)
    )
