"""What an edit takes away from the pairs of a set, and that nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pair_edits import (
    of_equal_length,
    without_end,
    write_edited,
)
from common.chat import ChatEncoder, encoder_of
from common.config.model import Model
from common.data.datasets import STATS, read_pairs
from common.data.pair_writer import spec_of
from tests.cluster.runs import offline_set
from tests.tiny_models import tiny_llava


def stats_of(folder: Path) -> Any:
    return json.loads((folder / STATS).read_text())


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return encoder_of(Model(path=str(tiny_llava())))


def test_only_the_end_goes(encoder: ChatEncoder, tmp_path: Path) -> None:
    source = offline_set(tmp_path / "pairs", "bdhs", 3)
    write_edited(source, without_end, encoder, tmp_path / "edited")
    pairs = read_pairs(source)
    edited = read_pairs(tmp_path / "edited")
    for before, after in zip(pairs, edited, strict=True):
        for side in ("chosen", "rejected"):
            text = getattr(before, side).text
            whole = encoder.encode_response(text)
            assert getattr(after, side).token_ids == whole[:-1]
            assert getattr(after, side).text == text
            assert whole[-1] == encoder.eos_token_id
        blank = {"chosen": before.chosen, "rejected": before.rejected}
        assert replace(after, prompt=before.prompt, **blank) == before
    spec = {**(spec_of(source) or {}), "edit": "without_end"}
    assert spec_of(tmp_path / "edited") == spec
    assert stats_of(tmp_path / "edited") == {
        "num_pairs": 3,
        "dropped": {"without_end": 0},
    }


def test_what_is_left_out_is_counted(encoder: ChatEncoder, tmp_path: Path) -> None:
    """The rejected answers of these three pairs are shorter than the chosen ones."""
    source = offline_set(tmp_path / "pairs", "bdhs", 3)
    write_edited(source, of_equal_length, encoder, tmp_path / "edited")
    assert stats_of(tmp_path / "edited") == {
        "num_pairs": 0,
        "dropped": {"of_equal_length": 3},
    }


def test_a_side_that_is_longer_leaves_its_pair_out(
    encoder: ChatEncoder, tmp_path: Path
) -> None:
    (pair,) = read_pairs(offline_set(tmp_path / "pairs", "bdhs", 1))
    same = replace(pair, rejected=replace(pair.chosen))
    longer = replace(pair, rejected=replace(pair.chosen, text=pair.chosen.text * 2))
    assert of_equal_length(same, encoder) == same
    assert of_equal_length(longer, encoder) is None
