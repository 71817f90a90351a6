"""The scorecard's grounding gate with policies that are functions of what they are shown."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.grounding import KINDS, Gate, grounding_gate, with_grounding
from cluster.samples_page import grounding_lines
from common.config import Evaluation, Mixture, RunConfig
from common.datasets import write_pairs
from common.errors import UserError
from common.images import ImageStore, read
from common.overrides import load_config
from common.records import Dropped, PreferencePair, Prompt, Response
from common.shapes.prompts import caption_prompts
from common.shapes.render import IMAGE_SIZE
from common.views import GREY
from reward.scorecard import Answers, Scorecard

CONFIG = RunConfig(mixture=Mixture(online_fraction=1))
SETTINGS = Evaluation(bootstrap_samples=20)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def captions(store: ImageStore) -> list[Prompt]:
    return caption_prompts("test", 9, 0, store)


def changed(**settings: object) -> RunConfig:
    return CONFIG.model_copy(update={"evaluation": Evaluation.model_validate(settings)})


def seeing(captions: list[Prompt], weight: float):
    """A policy that likes the true answer by `weight` when it is shown the true picture."""
    truth = {prompt.images[0].sha256: prompt.reference for prompt in captions}

    async def score(
        asked: list[tuple[Prompt, str]],
    ) -> list[tuple[float, ...] | Dropped]:
        return [
            (-1.0 + weight * (truth.get(p.images[0].sha256) == text), -1.0)
            for p, text in asked
        ]

    return score


def talking(captions: list[Prompt], weight: float):
    """A policy that likes the true answer by `weight` without looking."""

    async def score(
        asked: list[tuple[Prompt, str]],
    ) -> list[tuple[float, ...] | Dropped]:
        return [
            (-1.0 + weight * (prompt.reference == text), -1.0) for prompt, text in asked
        ]

    return score


def measured(
    score, gate: Gate, baseline: Answers | None, settings: Evaluation = SETTINGS
):
    return asyncio.run(
        with_grounding((Scorecard(), Answers()), score, gate, baseline, settings)
    )


def test_pairs_are_true_captions_over_corrupted_ones(
    captions: list[Prompt], store: ImageStore
) -> None:
    gate = grounding_gate(CONFIG, captions, store)
    assert gate == grounding_gate(CONFIG, captions, store)
    assert (
        list(gate.shown) == ["true", "blank", "shuffled"]
        and gate.num_scored == 2 * 3 * 9
    )
    for prompt, kind, pair in zip(captions, KINDS * 3, gate.shown["true"], strict=True):
        assert (
            pair.prompt == prompt
            and pair.chosen.text == prompt.reference != pair.rejected.text
        )
        assert pair.id == f"{prompt.id}/{kind}"
    for own, blank, other in zip(*gate.shown.values(), strict=True):
        assert own.id == blank.id == other.id
        assert read(blank.prompt.images[0]).getcolors() == [
            (IMAGE_SIZE * IMAGE_SIZE, GREY)
        ]
        assert own.prompt.images != other.prompt.images
    few = grounding_gate(changed(grounding_pairs=4), captions, store)
    assert [pair.id for pair in few.shown["true"]] == [
        pair.id for pair in gate.shown["true"][:4]
    ]


def test_sight_is_told_from_words(captions: list[Prompt], store: ImageStore) -> None:
    """Against a start policy that is indifferent: the one is right with the picture only, the other always."""
    gate = grounding_gate(CONFIG, captions, store)
    card, start = measured(seeing(captions, 0.0), gate, None)
    assert card.grounding is not None and card.grounding.ranked_by == "logp_per_token"
    assert card.grounding.accuracy == {"true": 0.0, "blank": 0.0, "shuffled": 0.0}
    assert {view: len(found) for view, found in start.grounding.items()} == {
        "true": 9,
        "blank": 9,
        "shuffled": 9,
    }
    sees, _ = measured(seeing(captions, 0.5), gate, start)
    assert sees.grounding is not None
    assert (
        sees.grounding.accuracy["true"],
        sees.grounding.gain,
        sees.grounding.warning,
    ) == (1.0, 1.0, None)
    assert [warns for _, warns in grounding_lines(sees)] == [False]
    talks, _ = measured(talking(captions, 0.5), gate, start)
    assert talks.grounding is not None and talks.grounding.gain == 0
    (found, _), (warning, warns) = grounding_lines(talks)
    assert (
        "1.000 with the blank picture" in found
        and "9 pairs ranked by implicit reward" in found
    )
    assert warns and warning.startswith("WARNING")
    back = Scorecard.model_validate_json(talks.model_dump_json())
    assert back == talks


def test_what_the_start_policy_preferred_already_is_no_implicit_reward(
    captions: list[Prompt], store: ImageStore
) -> None:
    gate = grounding_gate(CONFIG, captions, store)
    card, start = measured(seeing(captions, 0.5), gate, None)
    assert card.grounding is not None and card.grounding.gain == 1
    same, _ = measured(seeing(captions, 0.5), gate, start)
    assert same.grounding is not None and same.grounding.accuracy["true"] == 0


def test_what_cannot_be_scored_is_counted(
    captions: list[Prompt], store: ImageStore
) -> None:
    gate = grounding_gate(CONFIG, captions, store)
    broken = captions[0].images

    async def score(
        asked: list[tuple[Prompt, str]],
    ) -> list[tuple[float, ...] | Dropped]:
        return [
            Dropped(p.id, "prompt_too_long") if p.images == broken else (-1.0,)
            for p, _ in asked
        ]

    card, _ = measured(score, gate, None)
    assert card.grounding is not None
    # As one pair's own picture and as another pair's stranger, two answers each.
    assert (card.grounding.num_pairs, card.grounding.dropped) == (
        7,
        {"prompt_too_long": 4},
    )


def test_without_a_corrupter_it_is_left_out_with_the_reason(
    captions: list[Prompt], store: ImageStore, tmp_path: Path
) -> None:
    words = [
        "--data.prompts",
        f'{{ kind = "file", path = "{tmp_path}" }}',
        "--mixture.online_fraction=1",
    ]
    config = load_config(None, words)
    gate = grounding_gate(config, captions, store)
    card, _ = measured(seeing(captions, 1.0), gate, None)
    assert card.grounding is not None and "evaluation.pairs" in (
        card.grounding.missing or ""
    )
    ((line, warns),) = grounding_lines(card)
    assert "not measured" in line and not warns
    off = grounding_gate(changed(grounding_pairs=0), captions, store)
    assert off.missing == "evaluation.grounding_pairs is 0"


def test_held_out_pairs_take_the_place_of_corrupted_ones(
    captions: list[Prompt], store: ImageStore, tmp_path: Path
) -> None:
    pairs = [
        PreferencePair(
            f"held/{p.id}", p, Response(p.reference or "", (1, 2)), Response("no"), "x"
        )
        for p in captions
    ]
    write_pairs(tmp_path / "held", pairs)
    gate = grounding_gate(changed(pairs=str(tmp_path / "held")), captions, store)
    assert [pair.id for pair in gate.shown["true"]] == [pair.id for pair in pairs]
    assert {pair.chosen.token_ids for pair in gate.shown["true"]} == {None}
    text = replace(pairs[0], prompt=replace(pairs[0].prompt, images=(), messages=()))
    write_pairs(tmp_path / "text", [text])
    assert "holds no pair" in (
        grounding_gate(changed(pairs=str(tmp_path / "text")), captions, store).missing
        or ""
    )


def test_pairs_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    words = [
        f"--data.offline.path={tmp_path}/a",
        f"--evaluation.pairs={tmp_path}/b/../a",
    ]
    with pytest.raises(UserError, match="not trained on"):
        load_config(None, words)
