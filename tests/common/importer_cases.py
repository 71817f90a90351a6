"""Published sets by hand: for every importer a good row, what it becomes, and how to break it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from common.data.images import ImageStore
from common.importers import load
from common.importers.build import outcomes
from common.reading.image_intake import ImageIntake
from common.reading.readers import read_rows
from common.records import Dropped, Part

IMAGE = Part("image")


def encoded(
    mode: str = "RGB", size: tuple[int, int] = (6, 4), format: str = "PNG"
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format)
    return buffer.getvalue()


PICTURE = encoded()
EMBEDDED = {"bytes": PICTURE, "path": "a.png"}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def rated(response: str, *ratings: Any) -> dict[str, Any]:
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    annotations = {
        name: {"Rating": rating, "Rationale": "r"}
        for name, rating in zip(aspects, ratings, strict=True)
    }
    return {"annotations": annotations, "model": "m", "response": response}


def trl_messages(role: str, *parts: dict[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": list(parts)}]


VICUNA = "A chat between a curious user and an AI. It helps. USER: <image>\nWhat?  ASSISTANT:"


@dataclass(frozen=True)
class Case:
    """A good row with the records it must become, and how to break it.

    `malformed` is a change of fields with the reason it must be dropped under; `put` puts an image into a row.
    """

    good: dict[str, Any]
    ids: tuple[str, ...]
    malformed: tuple[dict[str, Any], str]
    put: Callable[[dict[str, Any], Any], None]
    file: str = "set.json"
    asked: tuple[tuple[str, tuple[Part, ...]], ...] = (
        ("user", (IMAGE, Part("text", "What?"))),
    )
    answers: tuple[tuple[str, str], ...] = (("A cat.", "A dog."),)
    scores: tuple[tuple[float, float] | None, ...] = (None,)


def field(name: str) -> Callable[[dict[str, Any], Any], None]:
    return lambda row, image: row.__setitem__(name, image)


def in_list(name: str) -> Callable[[dict[str, Any], Any], None]:
    return lambda row, image: row.__setitem__(name, [image])


CONVERSATION = [human("<image>\nWhat?"), gpt("A cat.")]
ANSWERS = {"chosen": "A cat.", "rejected": "A dog."}
CASES = {
    "povid": Case(
        {
            "id": "7",
            "image": "elsewhere/train2017/a.png",
            "conversations": CONVERSATION,
            "rejected_conversations": [human("<image>\nWhat?"), gpt("A dog.")],
        },
        ("povid/0:7",),
        (
            {"rejected_conversations": [human("<image>\nWho?"), gpt("A dog.")]},
            "prompt_differs",
        ),
        field("image"),
    ),
    "rlhf_v": Case(
        {"image": EMBEDDED, "text": str({"question": "What?", **ANSWERS}), "idx": 3},
        ("rlhf_v/0:3",),
        ({"text": "__import__('os').abort()"}, "bad_row"),
        lambda row, image: row.__setitem__("image", {"bytes": image, "path": None}),
        "RLHF-V-Dataset.parquet",
    ),
    "rlaif_v": Case(
        {"image": EMBEDDED, "question": "What?", **ANSWERS, "idx": 3},
        ("rlaif_v/0:3",),
        ({"question": None}, "bad_row"),
        lambda row, image: row.__setitem__("image", {"bytes": image, "path": None}),
        "data/train-00000-of-00001.parquet",
    ),
    "trl": Case(
        {
            "images": [EMBEDDED],
            "prompt": trl_messages(
                "user", {"type": "image"}, {"type": "text", "text": "What?"}
            ),
            "chosen": trl_messages("assistant", {"type": "text", "text": "A cat."}),
            "rejected": trl_messages("assistant", {"type": "text", "text": "A dog."}),
        },
        ("trl/0",),
        (
            {"chosen": trl_messages("user", {"type": "text", "text": "A cat."})},
            "bad_row",
        ),
        lambda row, image: row.__setitem__("images", [{"bytes": image, "path": None}]),
        "train.parquet",
    ),
    "vlfeedback": Case(
        {
            "id": "s1",
            "prompt": "What?",
            "img_path": "a.png",
            "completions": [
                rated("A cat.", "5", "5", "3"),
                rated("A dog.", "2", "3", "3"),
                rated("A cow.", 5, 5, 5),
            ],
        },
        ("vlfeedback/0:s1/0-1", "vlfeedback/0:s1/0-2", "vlfeedback/0:s1/1-2"),
        ({"completions": "none"}, "bad_row"),
        field("img_path"),
        "train.jsonl",
        answers=(("A cat.", "A dog."), ("A cow.", "A cat."), ("A cow.", "A dog.")),
        scores=((13 / 3, 8 / 3), (5.0, 13 / 3), (5.0, 8 / 3)),
    ),
    "llava_human_preference": Case(
        {
            "id": "7",
            "image": "a.png",
            "conversations": [
                human("<image>\nHi"),
                gpt("Yes?"),
                human("What?"),
                gpt("A dog."),
            ],
            "output_1": gpt("A dog."),
            "output_2": gpt("A cat."),
            "preference": 2,
        },
        ("llava_human_preference/0:7",),
        ({"preference": 3}, "bad_row"),
        field("image"),
        asked=(
            ("user", (IMAGE, Part("text", "Hi"))),
            ("assistant", (Part("text", "Yes?"),)),
            ("user", (Part("text", "What?"),)),
        ),
    ),
    "ha_dpo": Case(
        {
            "image_id": "a",
            "question": "What?",
            "chosen": "A cat.",
            "reject": "A dog.",
            "correct": False,
        },
        ("ha_dpo/0:a",),
        ({"correct": True}, "already_correct"),
        field("image_id"),
        "pope_data.json",
    ),
    "mmpr": Case(
        {"image": "a.png", "question": "<image>\nWhat?", **ANSWERS},
        ("mmpr/0",),
        ({"question": "<image> and <image>"}, "image_count"),
        field("image"),
        "one.jsonl",
    ),
    "mm_rlhf": Case(
        {"image": "a.png", "prompt": "What?", **ANSWERS, "rank": 1},
        ("mm_rlhf/0",),
        ({"video": "a.mp4"}, "video"),
        field("image"),
        "dpo_pairs.jsonl",
    ),
    "opa_dpo": Case(
        {
            "queries": "<image>\nWhat?",
            "image_bytes": base64.b64encode(PICTURE).decode(),
            "AI_pseudo_response": "A cat.",
            "original_generate_response": "A dog.",
        },
        ("opa_dpo/0",),
        ({"image_bytes": "no base64!"}, "bad_row"),
        lambda row, image: row.__setitem__(
            "image_bytes", base64.b64encode(image).decode()
        ),
        "data-00000-of-00001.arrow",
    ),
    "mdpo": Case(
        {"img_path": "a.png", "prompt": VICUNA, **ANSWERS},
        ("mdpo/0",),
        ({"prompt": "USER: a ASSISTANT: b USER: c ASSISTANT:"}, "bad_template"),
        field("img_path"),
        "train.jsonl",
    ),
    "llava_instruct": Case(
        {
            "id": "7",
            "image": "a.png",
            "conversations": [*CONVERSATION, human("Sure?"), gpt("Yes.")],
        },
        ("llava_instruct/0:7/1", "llava_instruct/0:7/3"),
        ({"conversations": [human("<image>\nWhat?")]}, "no_pair"),
        field("image"),
    ),
    "llama_factory": Case(
        {
            "conversations": [human("<image>What?")],
            "chosen": gpt("A cat."),
            "rejected": gpt("A dog."),
            "images": ["a.png"],
            "system": "Be brief.",
        },
        ("llama_factory/0",),
        (
            {"conversations": [{"from": "observation", "value": "<image>"}]},
            "role_unknown",
        ),
        in_list("images"),
        asked=(
            ("system", (Part("text", "Be brief."),)),
            ("user", (IMAGE, Part("text", "What?"))),
        ),
    ),
    "ms_swift": Case(
        {
            "messages": [
                {"role": "user", "content": "What?"},
                {"role": "assistant", "content": "A cat."},
            ],
            "rejected_response": "A dog.",
            "images": ["a.png"],
        },
        ("ms_swift/0",),
        ({"rejected_images": ["b.png"]}, "rejected_image"),
        in_list("images"),
        "set.jsonl",
    ),
}
EMBEDDING = ("rlhf_v", "rlaif_v", "trl", "opa_dpo")
NAMING = tuple(name for name in CASES if name not in EMBEDDING)


def write(path: Path, rows: list[Any]) -> Path:
    """Rows in the container that the suffix stands for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    return path


def imported(name: str, path: Path, root: Path) -> tuple[list[Any], list[Dropped]]:
    """The records of a file or folder, and what was dropped."""
    importer = load(name)
    intake = ImageIntake(root, ImageStore(root.parent / "store"))
    records: list[Any] = []
    dropped: list[Dropped] = []
    rows = read_rows(importer.files(path), importer.keyed)
    for number, (row, _) in enumerate(rows):
        for outcome in outcomes(importer, number, row, intake):
            if isinstance(outcome, Dropped):
                dropped.append(outcome)
            else:
                records.append(outcome)
    return records, dropped


def case_rows(name: str, *changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The good row of a case, once for each change."""
    return [{**deepcopy(CASES[name].good), **change} for change in changes]
