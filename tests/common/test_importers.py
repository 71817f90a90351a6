"""Importers: a good row of every set by hand, broken and hostile rows under their reasons, nothing lost in between."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data.images import ImageStore
from common.errors import UserError
from common.importers import NAMES, build, load
from common.importers.base import message
from common.importers.build import outcomes
from common.importers.conversations import strip_vicuna
from common.importers.rlhf_v import parse
from common.importers.vlfeedback import mean_rating
from common.reading.image_intake import ImageIntake
from common.records import Dropped, Part, PreferencePair, Prompt
from tests.common.importer_cases import (
    ANSWERS,
    CASES,
    EMBEDDED,
    EMBEDDING,
    IMAGE,
    NAMING,
    PICTURE,
    case_rows,
    encoded,
    imported,
    rated,
    write,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image folder with a.png and a.jpg, a way out of it, and what lies there."""
    images = tmp_path / "images"
    images.mkdir()
    for folder in (images, tmp_path):
        for name in ("a.png", "secret.png", "secret.jpg")[folder != images :]:
            (folder / name).write_bytes(PICTURE)
    (images / "a.jpg").write_bytes(PICTURE)
    (images / "link").symlink_to(tmp_path)
    (images / "loop.png").symlink_to("loop.png")
    return images


def test_every_row_of_the_table_has_an_importer_and_a_case() -> None:
    # Files of the user's own have tests of their own, test_prompt_files.py.
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


KEYS = sorted(
    {key for case in CASES.values() for key in case.good}
    | {"value", "from", "role", "content", "type", "text"}
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
    | st.sampled_from(["<image>", "a.png", "human", "gpt", "user", "assistant", "USER: a ASSISTANT:"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_row_is_imported_or_counted(data: st.DataObject) -> None:
    """A good row with any field replaced by anything, or anything at all, never stops an import."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for file in ("a.png", "a.jpg"):
            (root / file).write_bytes(PICTURE)
        for name, case in CASES.items():
            row = {
                **case.good,
                data.draw(st.sampled_from(sorted(case.good))): data.draw(VALUES),
            }
            for value in (row, data.draw(VALUES)):
                intake = ImageIntake(root, ImageStore(root / "store"))
                results = list(outcomes(load(name), 0, value, intake))
                assert results
                for result in results:
                    assert isinstance(result, PreferencePair | Prompt | Dropped)


@given(
    st.lists(
        st.sampled_from(["<image>", "\n", " ", "a", "b c", "<image"]), max_size=8
    ).map("".join)
)
def test_markers_are_all_that_is_taken_out_of_a_text(text: str) -> None:
    parts = message("user", text).parts
    assert sum(part.kind == "image" for part in parts) == text.count("<image>")
    joined = "".join("<image>" if part.kind == "image" else part.text for part in parts)
    assert "".join(joined.split()) == "".join(text.split())
    if "<image>" not in text:
        assert joined == text


@given(st.text("aU:SER \n", max_size=12).filter(lambda text: "ASSISTANT:" not in text))
def test_the_vicuna_template_comes_off(text: str) -> None:
    assert (
        strip_vicuna(f"A chat between a user and an AI. USER: {text} ASSISTANT:")
        == text.strip()
    )
    assert strip_vicuna(f"USER:  \n{text} ASSISTANT:") == text.strip()
    assert strip_vicuna(f"What does {text} mean?") == f"What does {text} mean?"
