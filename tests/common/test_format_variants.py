"""Formats as other tools' users have them: variants that are read, and all become the same pair.

The variants are those of people's reports: one row each, which asks "What?" about one picture and answers "A." or "B.".
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from common.records import Dropped, Part, PreferencePair
from tests.common.importer_cases import (
    IMAGE,
    PICTURE,
    human,
    imported,
    rated,
    write,
)
from tests.common.variant_rows import (
    ANSWERS,
    ASKED,
    BASE64,
    DATA_URL,
    EMBEDDED,
    SIDES,
    SWIFT,
    TURN_SIDES,
    A,
    B,
    outcomes_of,
    part,
    question_of,
    said,
    text,
)

READ: dict[str, tuple[str, dict[str, Any]]] = {
    "trl implicit": (
        "trl",
        {"images": [EMBEDDED], "chosen": ASKED + A, "rejected": ASKED + B},
    ),
    "trl implicit, texts": (
        "trl",
        {
            "images": ["a.png"],
            "chosen": said("user", "What?") + A,
            "rejected": said("user", "What?") + B,
        },
    ),
    "trl prompt twice": (
        "trl",
        {
            "image": "a.png",
            "prompt": "What?",
            "chosen": said("user", "What?") + A,
            "rejected": said("user", "What?") + B,
        },
    ),
    "trl strings": ("trl", {"image": "a.png", "prompt": "What?", **SIDES}),
    "trl marker before": (
        "trl",
        {"images": ["a.png"], "prompt": said("user", "<image>\nWhat?"), **ANSWERS},
    ),
    "trl marker behind": (
        "trl",
        {"images": ["a.png"], "prompt": said("user", "<image> What?"), **ANSWERS},
    ),
    "trl marker in a text part": (
        "trl",
        {
            "images": ["a.png"],
            "prompt": said("user", [text("<image>\nWhat?")]),
            **ANSWERS,
        },
    ),
    "trl image": ("trl", part(type="image", image="a.png")),
    "trl path": ("trl", part(type="image", path="a.png")),
    "trl data url": ("trl", part(type="image", url=DATA_URL)),
    "trl base64": ("trl", part(type="image", base64=BASE64)),
    "trl struct": ("trl", part(type="image", image=EMBEDDED)),
    "openai": (
        "trl",
        part(type="image_url", image_url={"url": DATA_URL, "detail": "low"}),
    ),
    "openai, plain": ("trl", part(type="input_image", image_url="a.png")),
    "anthropic": (
        "trl",
        part(
            type="image",
            source={"type": "base64", "media_type": "image/png", "data": BASE64},
        ),
    ),
    "qwen": ("trl", part(image="a.png")),
    "trl images as base64": ("trl", {"images": [BASE64], "prompt": ASKED, **ANSWERS}),
    "trl images as data urls": (
        "trl",
        {"images": [DATA_URL], "prompt": ASKED, **ANSWERS},
    ),
    "trl one struct": (
        "trl",
        {"images": EMBEDDED, "prompt": said("user", "What?"), **ANSWERS},
    ),
    "trl parts of an answer": (
        "trl",
        {
            "images": ["a.png"],
            "prompt": ASKED,
            "chosen": said("assistant", [text("A"), text(".")]),
            "rejected": B[0],
        },
    ),
    "llama-factory": (
        "llama_factory",
        {"conversations": [human("<image>What?")], **TURN_SIDES, "images": ["a.png"]},
    ),
    "llama-factory openai": (
        "llama_factory",
        {
            "messages": said("user", "<image>What?"),
            "chosen": A[0],
            "rejected": B[0],
            "images": ["a.png"],
        },
    ),
    "llama-factory parts": (
        "llama_factory",
        {
            "messages": said(
                "user", [{"type": "image", "image": "a.png"}, text("What?")]
            ),
            "chosen": A[0],
            "rejected": B[0],
        },
    ),
    "llama-factory texts": (
        "llama_factory",
        {"conversations": [human("<image>What?")], **SIDES, "images": ["a.png"]},
    ),
    "llama-factory alpaca": (
        "llama_factory",
        {"instruction": "<image>", "input": "What?", **SIDES, "images": [EMBEDDED]},
    ),
    "llama-factory capitals": (
        "llama_factory",
        {
            "conversations": [{"from": "Human", "value": "<image>What?"}],
            "chosen": {"from": "Assistant", "value": "A."},
            "rejected": {"from": "GPT", "value": "B."},
            "images": ["a.png"],
        },
    ),
    "ms-swift": ("ms_swift", SWIFT),
    "ms-swift struct": (
        "ms_swift",
        {**SWIFT, "images": [{"bytes": None, "path": "a.png"}]},
    ),
    "ms-swift base64": ("ms_swift", {**SWIFT, "images": [BASE64]}),
    "ms-swift parts": (
        "ms_swift",
        {
            "messages": said(
                "user", [{"type": "image", "image": "a.png"}, text("What?")]
            )
            + A,
            "rejected_response": "B.",
        },
    ),
    "ms-swift query": (
        "ms_swift",
        {
            "query": "<image>What?",
            "response": "A.",
            "rejected_response": "B.",
            "images": ["a.png"],
        },
    ),
    "ms-swift messages": (
        "ms_swift",
        {
            **SWIFT,
            "rejected_response": None,
            "rejected_messages": said("user", "<image>What?") + B,
            "rejected_images": ["a.png"],
        },
    ),
    "ms-swift sharegpt": (
        "ms_swift",
        {
            "conversations": [
                {"from": "user", "value": "<image>What?"},
                {"from": "assistant", "value": "A."},
            ],
            "rejected_response": "B.",
            "images": ["a.png"],
        },
    ),
    "rlaif-v": ("rlaif_v", {"image": EMBEDDED, "question": "What?", **SIDES}),
    "rlaif-v list": ("rlaif_v", {"image": [EMBEDDED], "question": "What?", **SIDES}),
    "rlhf-v dict": (
        "rlhf_v",
        {"image": "a.png", "text": {"question": "What?", **SIDES}},
    ),
    "rlhf-v text": (
        "rlhf_v",
        {"image": EMBEDDED, "text": str({"question": "What?", **SIDES})},
    ),
    "vlfeedback image": (
        "vlfeedback",
        {
            "prompt": "What?",
            "image": EMBEDDED,
            "completions": [rated("A.", 5, 5, 5), rated("B.", 1, 1, 1)],
        },
    ),
    "opa-dpo, broken into lines": (
        "opa_dpo",
        {
            "queries": "What?",
            "image_bytes": base64.encodebytes(PICTURE * 2).decode(),
            "AI_pseudo_response": "A.",
            "original_generate_response": "B.",
        },
    ),
    "mmpr data url": (
        "mmpr",
        {"image": DATA_URL, "question": "<image>\nWhat?", **SIDES},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_variants_that_are_read(name: str, tmp_path: Path) -> None:
    importer, row = READ[name]
    (tmp_path / "a.png").write_bytes(PICTURE)
    (pair,) = outcomes_of(importer, row, tmp_path)
    assert isinstance(pair, PreferencePair), pair
    (turn,) = pair.prompt.messages
    assert (turn.role, turn.parts) == ("user", (IMAGE, Part("text", "What?")))
    assert (pair.chosen.text, pair.rejected.text) == ("A.", "B.")
    (image,) = pair.prompt.images
    assert Path(image.path).read_bytes().startswith(PICTURE)


def test_several_rejected_answers_make_a_pair_each(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    row = {
        **SWIFT,
        "id": "x",
        "rejected_response": ["B.", B[0] | {"content": "C."}, "A."],
    }
    first, second, same = outcomes_of("ms_swift", row, tmp_path)
    assert (first.id, first.rejected.text) == ("ms_swift/0:x/0", "B.")
    assert (second.id, second.rejected.text) == ("ms_swift/0:x/1", "C.")
    assert same.reason == "pair_identical"


def test_markers_at_the_ends_of_lines_are_places(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    prompt = (
        said("user", "First: <image>\nSecond: <image>\nWhich?")
        + A
        + said("user", "<image> And this?")
    )
    row = {"images": ["a.png"] * 3, "prompt": prompt, **ANSWERS}
    (pair,) = outcomes_of("trl", row, tmp_path)
    first, _, last = pair.prompt.messages
    assert first.parts == (
        Part("text", "First:"),
        IMAGE,
        Part("text", "Second:"),
        IMAGE,
        Part("text", "Which?"),
    )
    assert last.parts == (IMAGE, Part("text", "And this?"))


def test_history_and_system_of_a_single_question(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    row = {
        "query": "What?",
        "system": "Be brief.",
        "history": [["<image>Hi", "Hello."]],
        "response": "A.",
        "rejected_response": "B.",
        "images": ["a.png"],
    }
    (pair,) = outcomes_of("ms_swift", row, tmp_path)
    assert [(turn.role, turn.parts[-1].text) for turn in pair.prompt.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "What?"),
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_parts_of_different_shapes_in_one_file(suffix: str, tmp_path: Path) -> None:
    """In parquet, every part has all fields of all parts, null where it does not use them."""
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").write_bytes(PICTURE)
    rows = [
        {"images": None, **part(type="image", image="a.png")},
        {"images": ["a.png"], **part(type="image")},
    ]
    pairs, dropped = imported("trl", write(tmp_path / f"rows{suffix}", rows), root)
    assert [len(pair.prompt.images) for pair in pairs] == [1, 1] and dropped == []


HOSTILE = [
    " " * 100_000 + "<image>x",
    "<image>" * 20_000,
    "<image> " * 20_000 + "x",
    "a/" * 500_000,
    " " * 500_000 + "!",
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_long_texts_cost_no_more_than_their_length(value: str, tmp_path: Path) -> None:
    """Each of them took minutes with a pattern that starts again at every character."""
    for row in (question_of(value), {"images": [value], "prompt": ASKED, **ANSWERS}):
        (dropped,) = outcomes_of("trl", row, tmp_path)
        assert isinstance(dropped, Dropped) and len(dropped.detail) < 500
