"""A row that the policy cannot read, in `inspect` and in an export."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import import_data
from common.data.datasets import IMAGES, write_pairs
from common.data.images import ImageStore
from common.records import Response
from tests.row_faults.rows import (
    FAULTS,
    MIXED,
    REASONS,
    bad_pair,
    delete_picture,
    good_pairs,
    two_bad_pairs,
    with_bad,
)


def inspected(directory: Path, model: Path) -> dict[str, Any]:
    """The policy's figures of a set, one pair per forward."""
    out = directory / "inspect.html"
    words = ["--policy", str(model), "--batch", "1", "--out", str(out)]
    assert import_data.main(["inspect", str(directory), *words]) == 0
    policy: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())["policy"]
    return policy


@FAULTS
def test_inspect(tmp_path: Path, store: ImageStore, model: Path, fault: str) -> None:
    good = good_pairs(store)
    write_pairs(tmp_path / "good", good)
    pairs = with_bad(good, store, fault)
    write_pairs(tmp_path / "mixed", pairs)
    if fault == "deleted_picture":
        delete_picture(tmp_path / "mixed" / IMAGES, pairs[2])
    expected = inspected(tmp_path / "good", model)
    policy = inspected(tmp_path / "mixed", model)
    assert policy["dropped"] == {REASONS[fault]: 1}
    assert policy["points"] == expected["points"]
    assert policy["grounding"]["views"] == expected["grounding"]["views"]


@FAULTS
def test_inspect_stops_when_the_policy_reads_no_pair(
    tmp_path: Path,
    store: ImageStore,
    model: Path,
    fault: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = bad_pair(store, fault)
    write_pairs(tmp_path / "set", [pair])
    if fault == "deleted_picture":
        delete_picture(tmp_path / "set" / IMAGES, pair)
    out = tmp_path / "inspect.html"
    words = ["--policy", str(model), "--out", str(out)]
    assert import_data.main(["inspect", str(tmp_path / "set"), *words]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"got none of 1; dropped {{'{REASONS[fault]}': 1}}" in message
    assert "(bad: " in message
    assert not out.exists()


def test_inspect_stops_when_all_rows_fall_to_several_reasons(
    tmp_path: Path,
    store: ImageStore,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_pairs(tmp_path / "set", two_bad_pairs(store))
    out = tmp_path / "inspect.html"
    words = ["--policy", str(model), "--out", str(out)]
    assert import_data.main(["inspect", str(tmp_path / "set"), *words]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(rf"got none of 2; dropped {MIXED}", message)
    assert not out.exists()


def test_an_export_of_no_row_says_why(
    tmp_path: Path, store: ImageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    (gone, other) = two_bad_pairs(store)
    same = replace(other, rejected=Response(f"{other.chosen.text}</s>"))
    write_pairs(tmp_path / "set", [gone, same])
    delete_picture(tmp_path / "set" / IMAGES, gone)
    words = ["export", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert import_data.main(words) == 2
    message = capsys.readouterr().err
    assert "got none of 2; dropped {'image_missing': 1, 'pair_identical': 1}" in message
