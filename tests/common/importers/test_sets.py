"""What is special to one published set, or to the way that it is stored."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from common.data.images import ImageStore
from common.errors import UserError
from common.importers.rlhf_v import parse
from common.importers.vlfeedback import mean_rating
from common.reading.image_intake import ImageIntake
from common.records import Part
from tests.common.importer_cases import (
    ANSWERS,
    CASES,
    EMBEDDED,
    IMAGE,
    PICTURE,
    case_rows,
    imported,
    rated,
    write,
)


def test_text_only_rows_of_mmpr_are_prompts_without_images(
    tmp_path: Path, root: Path
) -> None:
    rows = case_rows(
        "mmpr",
        {"image": None, "question": "1 + 1?"},
        {"image": ["a.png", "a.jpg"], "question": "Which?"},
    )
    (text, two), dropped = imported("mmpr", write(tmp_path / "one.jsonl", rows), root)
    assert text.prompt.images == () and text.prompt.messages[0].parts == (
        Part("text", "1 + 1?"),
    )
    assert (
        two.prompt.messages[0].parts == (IMAGE, IMAGE, Part("text", "Which?"))
        and dropped == []
    )


def test_sections_of_mmpr(tmp_path: Path, root: Path) -> None:
    """Two good sections, with and without the archive's name in front; one that climbs out, one missing, one broken."""
    folder = tmp_path / "MMPR"
    for name in ("first", "second"):
        write(folder / "annotations" / f"{name}.jsonl", case_rows("mmpr", {"id": name}))
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(PICTURE)
    write(tmp_path / "outside.jsonl", case_rows("mmpr", {}))
    meta = {
        "one": {"root": "images/", "annotation": "annotations/first.jsonl"},
        "two": {"root": "MMPR/images", "annotation": "MMPR/annotations/second.jsonl"},
        "climbs": {"root": "images", "annotation": "../outside.jsonl"},
        "missing": {"root": "images", "annotation": "annotations/third.jsonl"},
        "broken": {"root": 5},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    records, dropped = imported("mmpr", folder, folder)
    assert [pair.id for pair in records] == ["mmpr/0:first", "mmpr/1:second"]
    assert {drop.id: drop.reason for drop in dropped} == {
        "climbs": "path_outside", "missing": "bad_file", "broken": "bad_file"
    }  # fmt: skip


def test_descriptions_of_ha_dpo(tmp_path: Path, root: Path) -> None:
    """Object keyed by image id and list of rows give the same; a third chosen answer has no partner."""
    row = {
        "chosen": ["A cat.", "One cat.", "Cats."],
        "rejected": ["A dog.", "One dog."],
    }
    (root / "VG_100K_2").mkdir()
    (root / "VG_100K_2" / "17.jpg").write_bytes(PICTURE)
    keyed = tmp_path / "keyed.json"
    keyed.write_text(json.dumps({"17": row}))
    listed = write(tmp_path / "listed.json", [{"image_id": 17, **row}])
    for path in (keyed, listed):
        pairs, dropped = imported("ha_dpo", path, root)
        assert [(pair.chosen.text, pair.rejected.text) for pair in pairs] == [
            ("A cat.", "A dog."), ("One cat.", "One dog.")
        ]  # fmt: skip
        assert [pair.id for pair in pairs] == ["ha_dpo/0:17/0", "ha_dpo/0:17/1"]
        assert [drop.reason for drop in dropped] == ["answer_unpaired"]


def test_ratings_of_vlfeedback(tmp_path: Path, root: Path) -> None:
    """Of four answers: two tie (1 pair), one has no number (3 pairs); 2 pairs are left. Dict of lists is the same."""
    answers = [
        rated("a", 4, 4, 4),
        rated("b", "5", "4", "3"),
        rated("c", 1, 1, 1),
        rated("d", "N/A", 5, 5),
    ]
    columns = {key: [answer[key] for answer in answers] for key in answers[0]}
    for completions in (answers, columns):
        path = write(
            tmp_path / "v.jsonl", case_rows("vlfeedback", {"completions": completions})
        )
        pairs, dropped = imported("vlfeedback", path, root)
        assert [(pair.chosen.text, pair.rejected.text, pair.scores) for pair in pairs] == [
            ("a", "c", (4.0, 1.0)), ("b", "c", (4.0, 1.0))
        ]  # fmt: skip
        assert Counter(drop.reason for drop in dropped) == {
            "tie": 1,
            "rating_missing": 3,
        }
        assert len({pair.prompt.id for pair in pairs}) == 1
    assert (
        mean_rating({}) is None
        and mean_rating(rated("x", "nan", 1, 1)["annotations"]) is None
    )


def test_rejected_messages_of_ms_swift(tmp_path: Path, root: Path) -> None:
    asked = {"role": "user", "content": "What?"}
    same = {
        "rejected_response": None,
        "rejected_messages": [asked, {"role": "assistant", "content": "A dog."}],
    }
    other = {
        **same,
        "rejected_messages": [
            {**asked, "content": "Who?"},
            same["rejected_messages"][1],
        ],
    }
    only_image = {"rejected_response": None, "rejected_images": ["b.png"]}
    rows = case_rows(
        "ms_swift",
        {**same, "rejected_images": ["a.png"]},
        other,
        only_image,
        {"videos": ["a.mp4"]},
    )
    pairs, dropped = imported("ms_swift", write(tmp_path / "s.jsonl", rows), root)
    assert [pair.rejected.text for pair in pairs] == ["A dog."]
    assert [drop.reason for drop in dropped] == [
        "prompt_differs",
        "rejected_image",
        "video",
    ]


def test_trl_rows_as_plain_text(tmp_path: Path, root: Path) -> None:
    rows = [
        {
            "image": "a.png",
            "prompt": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "What?"},
            ],
            **ANSWERS,
        }
    ]
    (pair,), _ = imported("trl", write(tmp_path / "t.jsonl", rows), root)
    assert [turn.parts for turn in pair.prompt.messages] == [
        (Part("text", "s"),),
        (IMAGE, Part("text", "What?")),
    ]


def test_a_marker_that_is_no_image_part_is_refused(tmp_path: Path, root: Path) -> None:
    """A processor would take the text for the place of a second image."""
    rows = [{"image": "a.png", "prompt": "What is <image>?", **ANSWERS}]
    assert [
        drop.reason
        for drop in imported("trl", write(tmp_path / "t.jsonl", rows), root)[1]
    ] == ["image_count"]


@pytest.mark.parametrize("meta", ["{", "[]", "{}", '{"id": 5}', "null", "[" * 100_000])
def test_foreign_meta_is_a_bad_row(meta: str, tmp_path: Path, root: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        [{**CASES["trl"].good, "images": ["a.png"], "sightline_meta": meta}],
    )
    assert [drop.reason for drop in imported("trl", path, root)[1]] == ["bad_row"]


def test_the_text_of_rlhf_v_is_data_not_code(tmp_path: Path) -> None:
    values = {"question": 'It\'s "it"', "chosen": "a", "rejected": None}
    assert parse(json.dumps(values)) == parse(repr(values)) == values
    for text in (
        "open('x', 'w')",
        "[1]",
        "(" * 10_000,
        "[" * 50_000,
        "a" + ".a" * 50_000,
        "{'a': 1" * 1000,
        "x" * 500_000,
        "\0",
        "",
    ):
        with pytest.raises(UserError):
            parse(text)


def test_an_image_is_decoded_once(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    store = ImageStore(tmp_path / "store")
    add = store.add_bytes
    monkeypatch.setattr(
        store, "add_bytes", lambda data, name: (calls.append(name), add(data, name))[1]
    )
    intake = ImageIntake(root, store)
    assert (
        len(
            {
                intake.add(source).sha256
                for source in ("a.png", "a.png", "a.jpg", PICTURE, EMBEDDED)
            }
        )
        == 1
    )
    assert len(calls) == 1


def test_a_given_prefix_is_cut_off(tmp_path: Path, root: Path) -> None:
    intake = ImageIntake(root, ImageStore(tmp_path / "store"), "/author/disk")
    assert (
        intake.add("/author/disk/a.png").sha256
        == ImageIntake(root, intake.store).add("a.png").sha256
    )
    with pytest.raises(UserError, match="leaves it"):
        intake.add("/author/disk/../secret.png")


def test_save_to_disk_folders_and_shards(tmp_path: Path, root: Path) -> None:
    """What `datasets` itself writes, in shards; and parquet shards in the order of their names."""
    from datasets import Dataset

    rows = case_rows(
        "opa_dpo", *({"queries": f"<image>\nWhat {number}?"} for number in range(5))
    )
    Dataset.from_list(rows).save_to_disk(tmp_path / "opa", num_shards=2)
    pairs, dropped = imported("opa_dpo", tmp_path / "opa", root)
    assert [pair.prompt.messages[0].parts[1].text for pair in pairs] == [
        f"What {number}?" for number in range(5)
    ]
    assert dropped == []
    for number in (1, 0):
        write(
            tmp_path / "shards" / f"train-{number}.parquet",
            case_rows("rlaif_v", {"idx": number}),
        )
    assert [pair.id for pair in imported("rlaif_v", tmp_path / "shards", root)[0]] == [
        "rlaif_v/0:0",
        "rlaif_v/1:1",
    ]
