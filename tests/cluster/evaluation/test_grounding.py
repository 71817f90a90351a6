"""The scorecard's grounding gate with policies that are functions of what they are shown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from cluster.evaluation.asking import Asker, Scored
from cluster.evaluation.grounding import (
    AskedSuite,
    Gate,
    PairLogps,
    grounding_gate,
    pass_gate,
)
from cluster.evaluation.score_table import grounding_lines
from common import config
from common.config import Evaluation
from common.config.overrides import load_config
from common.data.datasets import write_pairs
from common.data.image_conditions import CONDITIONS, GREY
from common.data.images import ImageStore, read
from common.errors import UserError
from common.evaluation import ConditionLogps
from common.protocols import GenerationRequest
from common.records import Dropped, PreferencePair, Prompt, Response
from common.shapes.prompts import caption_prompts
from common.shapes.render import IMAGE_SIZE
from reward.shapes_world import ShapesSuite
from reward.suites.grounding import Grounding
from reward.suites.scorecard import Scorecard
from reward.suites.world import ERROR_KINDS

SUITE = ShapesSuite(config.ShapesSuite())
SETTINGS = Evaluation(bootstrap_samples=20)
Score: TypeAlias = Callable[[Sequence[tuple[Prompt, str]]], Awaitable[list[Scored]]]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def captions(store: ImageStore) -> list[Prompt]:
    return caption_prompts("test", 9, 0, store)


def shapes_gate(captions: list[Prompt], store: ImageStore, limit: int = 100) -> Gate:
    settings = Evaluation(grounding_pairs=limit)
    asked = AskedSuite(SUITE, {"captions": captions})
    return grounding_gate(settings, [asked], store)


def seeing(captions: list[Prompt], weight: float) -> Score:
    """A policy that likes the true answer by `weight` when it is shown the true picture."""
    # By content: a grey or shuffled picture is another one, whatever the prompt says.
    truth: dict[str, str | None] = {}
    for prompt in captions:
        image = prompt.images[0]
        truth[image.sha256] = prompt.reference

    def token_logps(prompt: Prompt, text: str) -> tuple[float, ...]:
        image = prompt.images[0]
        if truth.get(image.sha256) == text:
            return (-1.0 + weight, -1.0)
        return (-1.0, -1.0)

    return scorer(token_logps)


def talking(weight: float) -> Score:
    """A policy that likes the true answer by `weight` without looking."""

    def token_logps(prompt: Prompt, text: str) -> tuple[float, ...]:
        if prompt.reference == text:
            return (-1.0 + weight, -1.0)
        return (-1.0, -1.0)

    return scorer(token_logps)


def scorer(token_logps: Callable[[Prompt, str], Scored]) -> Score:
    """An engine's `score` made of a function of one answer."""

    async def score(answers: Sequence[tuple[Prompt, str]]) -> list[Scored]:
        return [token_logps(prompt, text) for prompt, text in answers]

    return score


@dataclass(frozen=True)
class Scorer:
    """An engine that is only asked for log-probs."""

    score: Score

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Any]:
        raise AssertionError("nothing is generated")


def measured(
    score: Score, gate: Gate, start: ConditionLogps | None
) -> tuple[Grounding, PairLogps]:
    asker = Asker([Scorer(score)])
    return asyncio.run(pass_gate(gate, asker, start, SETTINGS))


def test_pairs_are_true_captions_over_corrupted_ones(
    captions: list[Prompt], store: ImageStore
) -> None:
    gate = shapes_gate(captions, store)
    assert gate == shapes_gate(captions, store)
    assert tuple(gate.pairs) == CONDITIONS
    assert gate.num_answers == 2 * 3 * 9
    kinds = ERROR_KINDS * 3
    for prompt, kind, pair in zip(captions, kinds, gate.pairs["true"], strict=True):
        assert pair.prompt == prompt
        assert pair.chosen.text == prompt.reference != pair.rejected.text
        assert pair.id == f"{prompt.id}/{kind}"
    for true, blank, other in zip(*gate.pairs.values(), strict=True):
        assert true.id == blank.id == other.id
        pixels = read(blank.prompt.images[0])
        assert pixels.getcolors() == [(IMAGE_SIZE * IMAGE_SIZE, GREY)]
        assert true.prompt.images != other.prompt.images


def test_the_number_of_pairs_has_a_limit(
    captions: list[Prompt], store: ImageStore
) -> None:
    every_pair = shapes_gate(captions, store).pairs["true"]
    few = shapes_gate(captions, store, limit=4)
    assert few.pairs["true"] == every_pair[:4]


def test_sight_is_told_from_words(captions: list[Prompt], store: ImageStore) -> None:
    """Against a start policy that is indifferent: the one is right with the picture only, the other always."""
    gate = shapes_gate(captions, store)
    indifferent, start = measured(seeing(captions, 0.0), gate, None)
    assert indifferent.ranked_by == "logp_per_token"
    assert indifferent.accuracy == {"true": 0.0, "blank": 0.0, "shuffled": 0.0}
    for condition in CONDITIONS:
        assert len(start[condition]) == 9

    sees, _ = measured(seeing(captions, 0.5), gate, start)
    assert sees.accuracy["true"] == 1.0
    assert sees.gain == 1.0
    assert sees.warning is None
    lines = grounding_lines(Scorecard(grounding=sees))
    assert [is_warning for _, is_warning in lines] == [False]

    talks, _ = measured(talking(0.5), gate, start)
    assert talks.gain == 0
    card = Scorecard(grounding=talks)
    (summary, _), (warning, is_warning) = grounding_lines(card)
    assert "1.000 with the blank picture" in summary
    assert "9 pairs ranked by implicit reward" in summary
    assert is_warning
    assert warning.startswith("WARNING")
    assert Scorecard.model_validate_json(card.model_dump_json()) == card


def test_what_the_start_policy_preferred_already_is_no_implicit_reward(
    captions: list[Prompt], store: ImageStore
) -> None:
    gate = shapes_gate(captions, store)
    grounding, start = measured(seeing(captions, 0.5), gate, None)
    assert grounding.gain == 1
    same, _ = measured(seeing(captions, 0.5), gate, start)
    assert same.accuracy["true"] == 0


def test_what_cannot_be_scored_is_counted(
    captions: list[Prompt], store: ImageStore
) -> None:
    gate = shapes_gate(captions, store)
    broken = captions[0].images

    def token_logps(prompt: Prompt, text: str) -> Scored:
        if prompt.images == broken:
            return Dropped(prompt.id, "prompt_too_long")
        return (-1.0,)

    grounding, _ = measured(scorer(token_logps), gate, None)
    # As one pair's own picture and as another pair's stranger, two answers each.
    assert grounding.num_pairs == 7
    assert grounding.dropped == {"prompt_too_long": 4}


def test_without_held_out_pairs_it_is_left_out_with_the_reason(
    captions: list[Prompt], store: ImageStore
) -> None:
    no_suite: list[AskedSuite] = []
    no_scenes = [AskedSuite(SUITE, {"captions": []})]
    for suites in (no_suite, no_scenes):
        gate = grounding_gate(SETTINGS, suites, store)
        grounding, _ = measured(seeing(captions, 1.0), gate, None)
        assert grounding.missing is not None
        assert "evaluation.pairs" in grounding.missing
        ((line, is_warning),) = grounding_lines(Scorecard(grounding=grounding))
        assert "not measured" in line
        assert not is_warning
    off = shapes_gate(captions, store, limit=0)
    assert off.missing == "evaluation.grounding_pairs is 0"


def test_held_out_pairs_take_the_place_of_corrupted_ones(
    captions: list[Prompt], store: ImageStore, tmp_path: Path
) -> None:
    pairs: list[PreferencePair] = []
    for prompt in captions:
        pair = PreferencePair(
            id=f"held/{prompt.id}",
            prompt=prompt,
            chosen=Response(prompt.reference or "", (1, 2)),
            rejected=Response("no"),
            source="x",
        )
        pairs.append(pair)
    write_pairs(tmp_path / "held", pairs)
    suites = [AskedSuite(SUITE, {"captions": captions})]
    settings = Evaluation(pairs=str(tmp_path / "held"))
    gate = grounding_gate(settings, suites, store)
    shown = gate.pairs["true"]
    assert [pair.id for pair in shown] == [pair.id for pair in pairs]
    # The tokens in the set may be another tokenizer's.
    assert all(pair.chosen.token_ids is None for pair in shown)

    text_prompt = replace(pairs[0].prompt, images=(), messages=())
    write_pairs(tmp_path / "text", [replace(pairs[0], prompt=text_prompt)])
    settings = Evaluation(pairs=str(tmp_path / "text"))
    gate = grounding_gate(settings, suites, store)
    assert gate.missing is not None
    assert "holds no pair" in gate.missing


@pytest.mark.parametrize(
    ("held_out", "key"),
    [
        ("--evaluation.pairs={path}", "evaluation.pairs"),
        (
            '--evaluation.suites=[{{ kind = "preference", test = "{path}" }}]',
            "evaluation.suites.0.test",
        ),
    ],
)
def test_pairs_that_are_trained_on_are_refused(
    held_out: str, key: str, tmp_path: Path
) -> None:
    words = [
        f"--data.offline.path={tmp_path}/a",
        held_out.format(path=f"{tmp_path}/b/../a"),
    ]
    with pytest.raises(UserError, match=f"{key} must be pairs that are not trained on"):
        load_config(None, words)
