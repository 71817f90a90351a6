"""Prompts that are held out of training: by picture, and the same ones every time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.data import Data, HeldOut
from common.data.datasets import write_prompts
from common.data.images import ImageStore
from common.data.prompt_sources import load_split
from common.errors import UserError
from common.records import Prompt
from tests.common.prompts.layouts import (
    NUM_PICTURES,
    QUESTION,
    as_jsonl,
    jsonl,
    load,
    picture,
)


def many(folder: Path, shares: Sequence[Sequence[int]]) -> Path:
    """A prompt per element, about these pictures."""
    rows = []
    for pictures in shares:
        images = [f"pictures/{number}.png" for number in pictures]
        rows.append({"images": images, "prompt": QUESTION})
    return jsonl(folder / "many.jsonl", rows)


def ids(prompts: Sequence[Prompt]) -> set[str]:
    return {prompt.id for prompt in prompts}


def pictures_of(prompts: Sequence[Prompt]) -> set[str]:
    return {ref.sha256 for prompt in prompts for ref in prompt.images}


def test_a_share_is_held_out_by_picture(folder: Path) -> None:
    path = many(folder, [[number % NUM_PICTURES] for number in range(60)])
    settings = {"validation": 0.2, "test": 10}
    splits = {
        split: load(path, split, **settings)[0]
        for split in ("train", "validation", "test")
    }
    # Ten prompts a picture: 12 prompts are at most one picture.
    assert {split: len(part) for split, part in splits.items()} == {
        "train": 40,
        "validation": 10,
        "test": 10,
    }
    pictures = [pictures_of(part) for part in splits.values()]
    assert sum(map(len, pictures)) == len(set.union(*pictures)) == NUM_PICTURES


def test_the_order_of_rows_does_not_matter_and_the_seed_does(folder: Path) -> None:
    shares = [[number] for number in range(NUM_PICTURES)]
    held = []
    for seed in (0, 0, 1, 2, 3):
        validation = HeldOut(size=2, seed=seed)
        path = many(folder, shares)
        part, _ = load(path, "validation", validation=validation)
        held.append(pictures_of(part))
        shares.reverse()
    assert held[0] == held[1]
    assert any(other != held[0] for other in held[2:])


@settings(max_examples=30, deadline=None)
@given(
    shares=st.lists(
        st.lists(st.integers(0, NUM_PICTURES - 1), min_size=1, max_size=3),
        min_size=4,
        max_size=20,
    ),
    size=st.integers(1, 5),
)
def test_no_picture_is_on_two_sides(
    tmp_path_factory: pytest.TempPathFactory, shares: list[list[int]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("held") / "data"
    (folder / "pictures").mkdir(parents=True)
    for number in range(NUM_PICTURES):
        (folder / "pictures" / f"{number}.png").write_bytes(picture(number))
    path = many(folder, shares)
    try:
        train, _ = load(path, validation=size)
        held, _ = load(path, "validation", validation=size)
    except UserError as error:
        # All are about the same pictures, in the end.
        assert "on one side" in str(error)
        return
    assert len(train) + len(held) == len(shares)
    assert 1 <= len(held) <= size
    assert not pictures_of(train) & pictures_of(held)


def test_two_names_of_one_picture_are_one(folder: Path) -> None:
    for number in range(NUM_PICTURES):
        (folder / "pictures" / f"{number}.png").write_bytes(picture(0))
    path = many(folder, [[number] for number in range(NUM_PICTURES)])
    with pytest.raises(UserError, match=r"data\.validation: expected to hold out 2 of"):
        load(path, validation=2)


def test_more_cannot_be_held_out_than_there_is(folder: Path) -> None:
    path = many(folder, [[0], [1]])
    with pytest.raises(UserError, match="got 2 and 0 left to train on"):
        load(path, validation=5)


def test_an_overlap_is_warned_about(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = many(folder, [[0], [1], [2]])
    held = jsonl(
        folder / "held.jsonl",
        [
            {"image": f"pictures/{number}.png", "prompt": QUESTION}
            for number in (2, 3, 2)
        ],
    )
    with caplog.at_level(logging.WARNING, "sightline"):
        load(train, validation=str(held))
    assert "data.validation: 2 of 3 prompts are about pictures that" in caplog.text
    assert "such as prompts/0" in caplog.text
    caplog.clear()
    # The same of a set of ours, whose pictures have other names.
    prompts, _ = load(held)
    write_prompts(folder / "ours", list(prompts))
    with caplog.at_level(logging.WARNING, "sightline"):
        load(train, test=str(folder / "ours"))
    assert "data.test: 2 of 3 prompts" in caplog.text


def test_without_a_held_out_split_there_is_none(folder: Path) -> None:
    assert load(as_jsonl(folder), "validation")[0] == ()


def test_only_the_first_of_a_held_out_split(folder: Path) -> None:
    path = as_jsonl(folder)
    store = ImageStore(folder / "store")
    for validation in (str(path), 4):
        data = Data.model_validate({"prompts": str(path), "validation": validation})
        every = load_split(data, "validation", store, [])
        first = load_split(data, "validation", store, [], limit=2)
        assert list(first) == list(every)[:2]
