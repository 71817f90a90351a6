"""Whole files of people's reports, and further ways to spell answers, images and conversations in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.importers import load
from common.records import Part, PreferencePair
from tests.common.importer_cases import (
    IMAGE,
    PICTURE,
    gpt,
    human,
    imported,
    rated,
    write,
)
from tests.common.variant_rows import (
    ANSWERS,
    BASE64,
    DATA_URL,
    EMBEDDED,
    SIDES,
    SWIFT,
    TURN_SIDES,
    A,
    B,
    outcomes_of,
    said,
)

LISTED = {"chosen": [gpt("A.")], "rejected": [gpt("B.")]}
DICTS = {"chosen": A[0], "rejected": B[0]}
SPELLED = {"chosen": json.dumps(A), "rejected": json.dumps(B[0])}
QUESTION = {"question": "What?", **SIDES}
TALK = [human("<image>What?")]
ANSWERED = {"response": "A.", "rejected_response": "B.", "images": ["a.png"]}
SIDE_BY_SIDE = {"id": "1", "image": "a.png", "conversations": TALK, "preference": 1}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "trl, answers of another format": ("trl", {"images": ["a.png"], "prompt": "What?", **LISTED}),
    "trl, answers as dicts": ("trl", {"images": ["a.png"], "prompt": "What?", **DICTS}),
    "trl, spelled as JSON": ("trl", {"images": ["a.png"], "prompt": json.dumps(said("user", "What?")), **SPELLED}),
    "trl, prompt as a dict": ("trl", {"images": ["a.png"], "prompt": said("user", "What?")[0], **SIDES}),
    "trl, prompt of another format": ("trl", {"images": ["a.png"], "prompt": TALK, **SIDES}),
    "trl, images as addresses": ("trl", {"images": [{"url": DATA_URL}], "prompt": "What?", **SIDES}),
    "trl, images as OpenAI's parts": (
        "trl",
        {"images": [{"type": "image_url", "image_url": {"url": DATA_URL}}], "prompt": "What?", **SIDES},
    ),
    "trl, base64 in a dict": ("trl", {"images": [{"bytes": BASE64, "path": None}], "prompt": "What?", **SIDES}),
    "trl, both column and part": (
        "trl",
        {"images": ["a.png"], "prompt": said("user", [{"type": "image", "image": "x/a.png"}, "What?"]), **SIDES},
    ),
    "llama-factory, answers in lists": ("llama_factory", {"conversations": TALK, **LISTED, "images": ["a.png"]}),
    "llama-factory, one image": ("llama_factory", {"conversations": TALK, **TURN_SIDES, "image": "a.png"}),
    "llama-factory, prompt": ("llama_factory", {"prompt": "<image>What?", **SIDES, "images": ["a.png"]}),
    "llama-factory, spelled as JSON": (
        "llama_factory",
        {"conversations": json.dumps(TALK), **SPELLED, "images": ["a.png"]},
    ),
    "llama-factory, OpenAI": (
        "llama_factory",
        {
            "messages": said(
                "user",
                [{"type": "image_url", "image_url": {"url": DATA_URL}}, {"type": "text", "text": "What?"}],
            ),
            **DICTS,
        },
    ),
    "ms-swift, prompt": ("ms_swift", {"prompt": "<image>What?", **ANSWERED}),
    "ms-swift, no history": ("ms_swift", {"query": "<image>What?", "history": None, **ANSWERED}),
    "ms-swift, no marker": ("ms_swift", {"query": "What?", "history": [], **ANSWERED}),
    "ms-swift, image": ("ms_swift", {**SWIFT, "images": None, "image": "a.png"}),
    "ms-swift, address": ("ms_swift", {**SWIFT, "images": [{"url": DATA_URL}]}),
    "ms-swift, rejected as a dict": ("ms_swift", {**SWIFT, "rejected_response": B[0]}),
    "ms-swift, the same images twice": ("ms_swift", {**SWIFT, "rejected_images": [{"bytes": None, "path": "a.png"}]}),
    "ms-swift, objects of no text": ("ms_swift", {**SWIFT, "objects": {"ref": [], "bbox": []}}),
    "rlhf-v, JSON": ("rlhf_v", {"image": "a.png", "text": json.dumps(QUESTION)}),
    "rlhf-v, JSON within JSON": ("rlhf_v", {"image": "a.png", "text": json.dumps(json.dumps(QUESTION))}),
    "rlhf-v, columns": ("rlhf_v", {"image": "a.png", **QUESTION}),
    "rlaif-v, answers as messages": ("rlaif_v", {"image": BASE64, "question": "What?", **ANSWERS}),
    "rlaif-v, answers as dicts": ("rlaif_v", {"image": EMBEDDED, "question": "<image>\nWhat?", **DICTS}),
    "llava-rlhf, answers as texts": (
        "llava_human_preference",
        {**SIDE_BY_SIDE, "output_1": "A.", "output_2": "B."},
    ),
    "povid, OpenAI": (
        "povid",
        {
            "image": "a.png",
            "conversations": said("user", "<image>What?") + A,
            "rejected_conversations": said("user", "<image>What?") + B,
        },
    ),
    "ha-dpo, rejected": ("ha_dpo", {"image_id": 1, "question": "What?", **SIDES, "correct": False}),
    "opa-dpo, data URL": (
        "opa_dpo",
        {
            "queries": "What?",
            "image_bytes": DATA_URL,
            "AI_pseudo_response": "A.",
            "original_generate_response": "B.",
        },
    ),
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the pictures that the rows name."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "1.jpg"):
        (folder / name).write_bytes(PICTURE)
    return folder


def check_pair(pair: Any, question: str = "What?") -> None:
    assert isinstance(pair, PreferencePair), pair
    turn = pair.prompt.messages[-1]
    assert turn.role == "user" and turn.parts[-1] == Part("text", question)
    slots = [part for message in pair.prompt.messages for part in message.parts]
    assert slots.count(IMAGE) == len(pair.prompt.images) == 1
    assert (pair.chosen.text, pair.rejected.text) == ("A.", "B.")


@pytest.mark.parametrize("name", ROWS)
def test_every_spelling_gives_the_same_pair(name: str, root: Path) -> None:
    importer, row = ROWS[name]
    (pair,) = outcomes_of(importer, row, root)
    check_pair(pair)


SYSTEMS = {
    "trl": {"images": ["a.png"], "prompt": "What?", **SIDES},
    "llama_factory": {"conversations": TALK, **TURN_SIDES, "images": ["a.png"]},
    "ms_swift": SWIFT,
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_column_for_the_system_is_not_lost(name: str, root: Path) -> None:
    """Two of the three trained without it, in silence."""
    (pair,) = outcomes_of(name, {**SYSTEMS[name], "system": "Be brief."}, root)  # type: ignore[dict-item]
    check_pair(pair)
    first = pair.prompt.messages[0]
    assert (first.role, first.parts) == ("system", (Part("text", "Be brief."),))


def test_a_system_said_twice_is_one(root: Path) -> None:
    system = said("system", "Be brief.")
    trl = {"images": ["a.png"], "prompt": system + said("user", "What?"), **SIDES}
    swift = {
        **SWIFT,
        "rejected_response": None,
        "rejected_messages": said("user", "<image>What?") + B,
    }
    for name, row in (("trl", trl), ("ms_swift", swift)):
        (pair,) = outcomes_of(name, {**row, "system": "Be brief."}, root)
        check_pair(pair)
        roles = [message.role for message in pair.prompt.messages]
        assert roles == ["system", "user"]


HISTORIES: list[Any] = [
    [["<image>Hi", "Hello."]],
    [human("<image>Hi"), gpt("Hello.")],
    said("user", "<image>Hi") + said("assistant", "Hello."),
]


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("name", ["llama_factory", "ms_swift"])
def test_histories(history: Any, name: str, root: Path) -> None:
    row = {"query": "What?", "history": history, **SIDES, **ANSWERED}
    (pair,) = outcomes_of(name, row, root)
    check_pair(pair)
    roles = [message.role for message in pair.prompt.messages]
    assert roles == ["user", "assistant", "user"]


@pytest.mark.parametrize("text", ['{"box": [1, 2]}', '[{"label": "cat"}]', "[1]", "{}"])
def test_an_answer_of_json_is_a_text(text: str, root: Path) -> None:
    row = {"image": "a.png", "question": "What?", "chosen": text, "rejected": "B."}
    (pair,) = outcomes_of("rlaif_v", row, root)
    assert pair.chosen.text == text


def parquet(path: Path, row: dict[str, Any], schema: pa.Schema | None = None) -> Path:
    pq.write_table(pa.Table.from_pylist([row], schema=schema), path)
    return path


def test_llama_factory_in_parquet(root: Path, tmp_path: Path) -> None:
    row = {"conversations": TALK, **TURN_SIDES, "images": [EMBEDDED]}
    (pair,), dropped = imported("llama_factory", parquet(tmp_path / "a.parquet", row), root)  # fmt: skip
    check_pair(pair)
    assert dropped == []


def test_trl_of_several_turns_in_parquet(root: Path, tmp_path: Path) -> None:
    """Without any place for it, the image stands before the first question."""
    turns = said("user", "What?") + said("assistant", "A thing.") + said("user", "Which?")  # fmt: skip
    row = {"images": [EMBEDDED], "prompt": turns, **ANSWERS}
    (pair,), _ = imported("trl", parquet(tmp_path / "a.parquet", row), root)
    check_pair(pair, "Which?")
    assert pair.prompt.messages[0].parts == (IMAGE, Part("text", "What?"))


STRUCT = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
VIEWS = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])
SCHEMAS = {
    "large": [STRUCT, pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    "views": [VIEWS, pa.string_view(), pa.string_view()],
    "list": [pa.list_(STRUCT), pa.string(), pa.string()],
    "list view": [pa.list_view(STRUCT), pa.string(), pa.string()],
    "large list view": [pa.large_list_view(STRUCT), pa.string(), pa.string()],
    "fixed list": [pa.list_(STRUCT, 1), pa.string(), pa.string()],
    "bytes": [pa.large_binary(), pa.string(), pa.string()],
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_types_of_parquet(name: str, root: Path, tmp_path: Path) -> None:
    image, text, answer = SCHEMAS[name]
    schema = pa.schema(
        [("image", image), ("question", text), ("chosen", answer), ("rejected", text)]
    )
    value: Any = {"bytes": PICTURE, "path": None}
    if name == "bytes":
        value = PICTURE
    elif "list" in name:
        value = [value]
    path = parquet(tmp_path / "a.parquet", {"image": value, **QUESTION}, schema)
    (pair,), _ = imported("rlaif_v", path, root)
    check_pair(pair)


def test_vlfeedback_as_the_hub_has_it(root: Path, tmp_path: Path) -> None:
    """A struct of lists; the answer that was not rated costs its two pairs, not the third."""
    answers = [rated("A.", "5", "5", "4"), rated("C.", "2", "5", "N/A"), rated("B.", "3", "3", "3")]  # fmt: skip
    completions = {key: [answer[key] for answer in answers] for key in answers[0]}
    row = {"id": "1", "prompt": "What?", "completions": completions, "img_path": "a.png"}  # fmt: skip
    (pair,), dropped = imported("vlfeedback", parquet(tmp_path / "a.parquet", row), root)  # fmt: skip
    check_pair(pair)
    assert [drop.reason for drop in dropped] == ["rating_missing"] * 2


def test_ha_dpo_as_its_authors_have_it(root: Path, tmp_path: Path) -> None:
    """Both files are lists; descriptions have no question of their own."""
    assert load("ha_dpo").keyed, "the other layout is an object of rows"
    pope = {"image_id": 1, "question": "What?", "chosen": "A.", "reject": "B."}
    (pair,), _ = imported("ha_dpo", write(tmp_path / "pope_data.json", [pope]), root)
    check_pair(pair)
    described = {"image_id": 1, "chosen": ["A.", "AA."], "rejected": ["B.", "BB."]}
    path = write(tmp_path / "desc_data.json", [described])
    pairs, dropped = imported("ha_dpo", path, root)
    answers = [(pair.chosen.text, pair.rejected.text) for pair in pairs]
    assert answers == [("A.", "B."), ("AA.", "BB.")] and dropped == []
