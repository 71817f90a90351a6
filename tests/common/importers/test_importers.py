"""Importers: a good row of every set by hand, broken and hostile rows under their reasons."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.importers import NAMES, build, load
from common.records import Part, Prompt
from tests.common.importer_cases import (
    CASES,
    EMBEDDING,
    NAMING,
    PICTURE,
    case_rows,
    encoded,
    imported,
    write,
)


def test_every_row_of_the_table_has_an_importer_and_a_case() -> None:
    # Files of the user's own have tests of their own, tests/common/prompts.
    assert {*CASES, "prompts"} == set(NAMES) and len(NAMES) == 15
    assert not set(NAMES) & {"export", "inspect"}, "commands of cluster.import_data"
    assert all(load(name).name == name for name in NAMES)


@pytest.mark.parametrize("name", [name for name in CASES if name != "llava_instruct"])
def test_a_good_row(name: str, tmp_path: Path, root: Path) -> None:
    case = CASES[name]
    pairs, dropped = imported(
        name, write(tmp_path / "set" / case.file, [case.good]), root
    )
    assert dropped == []
    assert tuple(pair.id for pair in pairs) == case.ids
    for pair in pairs:
        assert (
            tuple((turn.role, turn.parts) for turn in pair.prompt.messages)
            == case.asked
        )
        assert [Path(image.path).read_bytes() for image in pair.prompt.images] == [
            PICTURE
        ]
        assert pair.source == name and pair.weight_version is None
    assert (
        tuple((pair.chosen.text, pair.rejected.text) for pair in pairs) == case.answers
    )
    assert tuple(pair.scores for pair in pairs) == case.scores


def test_instructions_become_prompts_with_references(
    tmp_path: Path, root: Path
) -> None:
    first, second = imported(
        "llava_instruct",
        write(tmp_path / "s.json", [CASES["llava_instruct"].good]),
        root,
    )[0]
    assert isinstance(first, Prompt) and (first.reference, second.reference) == (
        "A cat.",
        "Yes.",
    )
    assert [turn.role for turn in second.messages] == ["user", "assistant", "user"]
    assert (
        second.messages[2].parts == (Part("text", "Sure?"),) and len(second.images) == 1
    )


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_row_is_counted_and_its_neighbours_stay(
    name: str, tmp_path: Path, root: Path
) -> None:
    change, reason = CASES[name].malformed
    path = write(tmp_path / "set" / CASES[name].file, case_rows(name, {}, change, {}))
    records, dropped = imported(name, path.parent, root)
    assert [drop.reason for drop in dropped] == [reason]
    assert dropped[0].id.startswith(f"{name}/1") and dropped[0].detail
    assert len(records) == 2 * len(CASES[name].ids)


HOSTILE_PATHS = {
    "../secret": "path_outside",
    "x/../../secret": "path_outside",
    "link/secret": "path_outside",
    "/etc/passwd": "path_outside",
    "https://example.org/a": "image_url",
    "file:///etc/passwd": "image_url",
    "nul\0byte": "image_missing",
    "loop": "image_missing",
    "x" * 5000: "image_missing",
}


@pytest.mark.parametrize("name", NAMING)
@pytest.mark.parametrize(
    ("path", "reason"), HOSTILE_PATHS.items(), ids=lambda value: value[:12]
)
def test_no_path_leaves_the_root(
    name: str, path: str, reason: str, tmp_path: Path, root: Path
) -> None:
    (row,) = case_rows(name, {})
    CASES[name].put(row, path if name == "ha_dpo" else f"{path}.png")
    records, dropped = imported(
        name, write(tmp_path / "set" / CASES[name].file, [row]), root
    )
    assert records == [] and {drop.reason for drop in dropped} == {reason}


HOSTILE_BYTES = {
    "image_huge": encoded("1", (16_000, 16_000)),
    "image_strip": encoded(size=(64, 1)),
    "image_corrupt": PICTURE[: len(PICTURE) // 2],
}
PICKLE = pickle.dumps(Image.new("RGB", (4, 4)))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n"


@pytest.mark.parametrize("name", EMBEDDING)
@pytest.mark.parametrize(
    ("data", "reason"),
    [(data, reason) for reason, data in HOSTILE_BYTES.items()]
    + [(PICKLE, "image_corrupt"), (EPS, "image_corrupt")],
    ids=[*HOSTILE_BYTES, "pickle", "eps"],
)
def test_embedded_bytes_that_are_no_picture(
    name: str, data: bytes, reason: str, tmp_path: Path, root: Path
) -> None:
    (row,) = case_rows(name, {})
    CASES[name].put(row, data)
    records, dropped = imported(
        name, write(tmp_path / "set" / CASES[name].file, [row]), root
    )
    assert records == [] and [drop.reason for drop in dropped] == [reason]


@pytest.mark.parametrize("name", NAMING)
def test_rows_without_an_image(name: str, tmp_path: Path, root: Path) -> None:
    (row,) = case_rows(name, {})
    CASES[name].put(row, None)
    if name in ("llama_factory", "ms_swift"):
        row["images"] = []
    records, dropped = imported(
        name, write(tmp_path / "set" / CASES[name].file, [row]), root
    )
    expected = {"ha_dpo": "bad_row", "mmpr": "image_count"}.get(name, "image_none")
    assert records == [] and {drop.reason for drop in dropped} == {expected}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": ""}, "answer_empty"),
        ({"rejected": " \n"}, "answer_empty"),
        ({"chosen": None}, "answer_empty"),
        ({"chosen": 5}, "bad_row"),
        ({"chosen": "x" * 10_000_000}, "answer_too_long"),
        ({"rejected": "A cat. "}, "pair_identical"),
        ({"chosen": "\ud800"}, "bad_row"),
        ({"question": "x" * 200_000}, "prompt_too_long"),
        ({"question": " "}, "prompt_empty"),
        ({"question": "<image> <image>"}, "image_count"),
        ({"image": ["a.png", "a.png"], "question": "<image>?"}, "image_count"),
        ({"image": 5}, "bad_row"),
        ({"image": {"a": 1}}, "image_none"),
    ],
    ids=str,
)
def test_limits_that_all_sets_share(
    change: dict[str, Any], reason: str, tmp_path: Path, root: Path
) -> None:
    path = write(tmp_path / "one.jsonl", case_rows("mmpr", change, {}))
    records, dropped = imported("mmpr", path, root)
    assert len(records) == 1 and [drop.reason for drop in dropped] == [reason]
    assert len(dropped[0].detail) < 400


def test_an_answer_of_the_longest_length_is_taken(tmp_path: Path, root: Path) -> None:
    path = write(
        tmp_path / "one.jsonl",
        case_rows("mmpr", {"chosen": "x" * build.MAX_ANSWER_CHARS}),
    )
    assert len(imported("mmpr", path, root)[0]) == 1
