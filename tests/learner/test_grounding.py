"""The grounding gate: a pure count, honest views, and a metric at checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.config import RunConfig
from common.data.image_conditions import GREY
from common.data.images import ImageStore, read
from learner.grounding import grounding_metrics, under_conditions
from learner.learner import Learner
from tests.learner.helpers import LORA, make_pairs, run_config, text_prompt


def test_metrics_by_hand() -> None:
    """True 3 of 4, blank 1 of 4, shuffled 2 of 4: the picture adds 3/4 - 2/4; a difference of 0 is no preference."""
    metrics = grounding_metrics(
        {"true": [1, 2, 0.5, -1], "blank": [0, 0, 1, -1], "shuffled": [1, -1, 2, 0]}
    )
    assert metrics == {
        "grounding/accuracy_true": 0.75,
        "grounding/accuracy_blank": 0.25,
        "grounding/accuracy_shuffled": 0.5,
        "grounding/gain": 0.25,
        "grounding/num_pairs_true": 4,
        "grounding/num_pairs_blank": 4,
        "grounding/num_pairs_shuffled": 4,
    }


def test_without_pairs_nothing_is_said() -> None:
    assert grounding_metrics({}) == {}
    assert grounding_metrics({"true": [1.0]}) == {
        "grounding/accuracy_true": 1.0,
        "grounding/num_pairs_true": 1,
        "grounding/num_pairs_blank": 0,
        "grounding/num_pairs_shuffled": 0,
    }


def test_every_view_says_how_many_pairs_it_counts() -> None:
    """Three pairs with images, of which one has no stranger's to be shuffled with: 2/3, 1/3 and 2/2."""
    metrics = grounding_metrics(
        {"true": [1, 2, -1], "blank": [0, 1, -1], "shuffled": [1, 2]}
    )
    assert [
        metrics[f"grounding/num_pairs_{view}"] for view in ("true", "blank", "shuffled")
    ] == [3, 3, 2]
    assert metrics["grounding/accuracy_shuffled"] == 1.0
    assert metrics["grounding/gain"] == pytest.approx(2 / 3 - 1)


def test_views(store: ImageStore, tmp_path: Path) -> None:
    one, two, three = make_pairs(store, 3)
    twin = replace(two, id="twin", prompt=one.prompt)
    gone = replace(
        three,
        prompt=replace(
            three.prompt, images=(replace(three.prompt.images[0], path="/none.png"),)
        ),
    )
    without_image = replace(two, prompt=text_prompt())
    shown = under_conditions(
        [one, without_image, twin, gone, two], ImageStore(tmp_path)
    )
    assert [pair.id for pair in shown["true"]] == [one.id, "twin", two.id]
    for pair, blank in zip(shown["true"], shown["blank"], strict=True):
        grey = read(blank.prompt.images[0])
        assert grey.size == read(pair.prompt.images[0]).size
        assert grey.getcolors() == [(grey.width * grey.height, GREY)]
        assert (blank.chosen, blank.rejected, blank.prompt_token_ids) == (
            pair.chosen,
            pair.rejected,
            None,
        )
    assert [pair.prompt.images for pair in shown["shuffled"]] == [
        two.prompt.images,
        two.prompt.images,
        one.prompt.images,
    ]


def test_one_picture_cannot_be_shuffled(store: ImageStore, tmp_path: Path) -> None:
    (pair,) = make_pairs(store, 1)
    assert set(under_conditions([pair], ImageStore(tmp_path))) == {"true", "blank"}


def with_interval(config: RunConfig, run_dir: Path) -> RunConfig:
    return RunConfig.model_validate(
        config.model_dump()
        | {"checkpoint": {"interval": 2}, "run": {"dir": run_dir, "seed": 0}}
    )


@pytest.mark.parametrize("tuning", [None, LORA], ids=["full", "lora"])
def test_the_gate_comes_with_checkpoints_and_changes_nothing(
    store: ImageStore,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    """The policy is trained to prefer, so its accuracy is 1 on the true pictures."""
    config = with_interval(run_config(tuning=tuning), tmp_path)
    ungated = config.learner.model_copy(update={"grounding_pairs": 0})
    gated = Learner(config)
    plain = Learner(config.model_copy(update={"learner": ungated}))
    gated.start()
    plain.start()
    pairs = make_pairs(store, 6)
    for step in range(1, 5):
        ours = gated.step(step, pairs)[0].metrics
        theirs = plain.step(step, pairs)[0].metrics
        assert ours["loss"] == theirs["loss"]
        assert ("grounding/gain" in ours) == (step % 2 == 0)
        assert "grounding/gain" not in theirs
    assert ours["grounding/accuracy_true"] == 1.0
    only_gated = {"grounding/gain"}
    for view in ("true", "blank", "shuffled"):
        assert ours[f"grounding/num_pairs_{view}"] == 6
        only_gated |= {f"grounding/accuracy_{view}", f"grounding/num_pairs_{view}"}
    assert set(ours) - set(theirs) == only_gated
