"""Formats as other tools' users have them: what cannot be read is refused as what it is, never half read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.records import Dropped
from tests.common.importer_cases import PICTURE, human
from tests.common.variant_rows import (
    ASKED,
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

TWO_SYSTEMS = said("system", "Be brief.") + said("user", "<image>What?")
SPOKEN = {"conversations": [human("<image>What?")], **TURN_SIDES, "images": ["a.png"]}
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "two prompts": (
        "trl",
        {"chosen": ASKED + A, "rejected": said("user", "Who?") + B},
        "prompt_differs",
        "got two",
    ),
    "another prompt": (
        "trl",
        {
            "prompt": "Who?",
            "chosen": said("user", "What?") + A,
            "rejected": said("user", "What?") + B,
        },
        "prompt_differs",
        "other turns",
    ),
    "implicit in plain texts": (
        "trl",
        {"chosen": "Human: What? A.", "rejected": "Human: What? B."},
        "bad_row",
        "messages and begin with it",
    ),
    "kto": (
        "trl",
        {"prompt": "What?", "completion": "A.", "label": True},
        "bad_row",
        "got the fields prompt, completion, label",
    ),
    "sft": ("trl", {"messages": ASKED + A}, "bad_row", "got the fields messages"),
    "marker in a sentence": (
        "trl",
        question_of("What is <image>?"),
        "image_count",
        "it may be a word",
    ),
    "marker of an assistant": (
        "trl",
        question_of(said("assistant", "<image>\nSo?") + said("user", "What?")),
        "image_count",
        "a user's line",
    ),
    "more markers": (
        "trl",
        question_of("<image><image>\nWhat?"),
        "image_count",
        "got 1 for 2",
    ),
    "parts without a place": (
        "trl",
        question_of(said("user", [text("What?")])),
        "image_count",
        "got 1 for 0",
    ),
    "image behind an address": (
        "trl",
        part(type="image_url", image_url={"url": "https://example.org/a.png"}),
        "image_url",
        "an address",
    ),
    "image that climbs": (
        "trl",
        part(type="image", image="../a.png"),
        "path_outside",
        "leaves it",
    ),
    "video part": ("trl", part(type="video", video="a.mp4"), "video", "got a video"),
    "audio part": (
        "trl",
        part(type="input_audio", input_audio={}),
        "audio",
        "got a audio",
    ),
    "tool part": ("trl", part(type="tool_use"), "bad_row", "got 'tool_use'"),
    "part of nothing": ("trl", part(), "bad_row", "got 'None'"),
    "content of numbers": ("trl", question_of(said("user", [5])), "bad_row", "got int"),
    "answer with an image": (
        "trl",
        {
            "images": ["a.png"],
            "prompt": ASKED,
            "chosen": ASKED[:0] + said("assistant", [{"type": "image"}]),
            "rejected": B,
        },
        "bad_row",
        "one assistant message of text",
    ),
    "no marker": (
        "llama_factory",
        {"conversations": [human("What?")], **TURN_SIDES, "images": ["a.png"]},
        "image_count",
        "got 1 for 0",
    ),
    "no image": (
        "llama_factory",
        {"conversations": [human("What?")], **TURN_SIDES},
        "image_none",
        "got none",
    ),
    "no question": (
        "llama_factory",
        {"output": ["A.", "B."]},
        "bad_row",
        "got the fields output",
    ),
    "chosen of a user": (
        "llama_factory",
        {"messages": said("user", "<image>?"), "chosen": ASKED[0], "rejected": B[0]},
        "bad_row",
        "ends with an answer",
    ),
    "history": (
        "llama_factory",
        {"instruction": "?", "history": ["x"], **SIDES},
        "bad_row",
        "history",
    ),
    "tools": (
        "ms_swift",
        {"messages": said("tool", "x") + A, "rejected_response": "B."},
        "role_unknown",
        "got 'tool'",
    ),
    "nothing rejected": (
        "ms_swift",
        {**SWIFT, "rejected_response": []},
        "no_pair",
        "nothing to import",
    ),
    "rejected numbers": (
        "ms_swift",
        {**SWIFT, "rejected_response": [5]},
        "bad_row",
        "got int",
    ),
    "two texts for the system": (
        "llama_factory",
        {"system": "Be long.", "messages": TWO_SYSTEMS, **SIDES, "images": ["a.png"]},
        "bad_row",
        "text for the system, got two",
    ),
    "two conversations": (
        "llama_factory",
        {**SPOKEN, "messages": said("user", "<image>Who?")},
        "bad_row",
        "got both, and they differ",
    ),
    "definitions of tools": (
        "llama_factory",
        {**SPOKEN, "tools": "[{}]"},
        "tools",
        "without tools",
    ),
    "answer of several turns": (
        "llama_factory",
        {**SPOKEN, "chosen": said("user", "So?") + A},
        "bad_row",
        "one turn as an answer, got 2",
    ),
    "history of three": (
        "llama_factory",
        {"instruction": "<image>?", "history": [["a", "b", "c"]], **SIDES},
        "bad_row",
        "history",
    ),
    "places of objects": (
        "ms_swift",
        {
            **SWIFT,
            "messages": said("user", "<image>Find <ref-object>") + A,
            "objects": {"ref": ["cat"]},
        },
        "objects",
        "got <ref-object>",
    ),
    "other images in the parts": (
        "trl",
        {**part(type="image", image="b.png"), "images": ["a.png"]},
        "bad_row",
        "got others there",
    ),
    "images of another format": (
        "trl",
        {"img_path": "a.png", "prompt": "What?", **SIDES},
        "image_column",
        "under 'img_path'",
    ),
    "images of a text-only format": (
        "mmpr",
        {"images": ["a.png"], "question": "What?", **SIDES},
        "image_column",
        "under 'images'",
    ),
    "images in the plural": (
        "rlaif_v",
        {"images": ["a.png"], "question": "What?", **SIDES},
        "image_column",
        "under 'images'",
    ),
    "videos of a text": (
        "trl",
        {"videos": ["a.mp4"], "prompt": "What?", **SIDES},
        "video",
        "got a video",
    ),
    "message without content": (
        "trl",
        question_of([{"role": "user"}]),
        "bad_row",
        "messages of role and content, got dict",
    ),
    "text as a message": (
        "trl",
        question_of(["What?"]),
        "bad_row",
        "messages of role and content, got str",
    ),
    "text of a list": (
        "rlhf_v",
        {"image": "a.png", "text": ["What?"]},
        "bad_row",
        "got list",
    ),
    "empty dict": ("rlhf_v", {"image": "a.png", "text": {}}, "bad_row", "'question'"),
    "no base64": (
        "opa_dpo",
        {"queries": "What?", "image_bytes": "no base64!"},
        "bad_row",
        "as base64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_variants_that_are_refused_as_what_they_are(name: str, tmp_path: Path) -> None:
    importer, row, reason, what = REFUSED[name]
    root = tmp_path / "images"
    root.mkdir()
    for folder in (root, tmp_path):
        (folder / "a.png").write_bytes(PICTURE)
    (dropped,) = outcomes_of(importer, row, root)
    assert isinstance(dropped, Dropped), dropped
    assert dropped.reason == reason and what in dropped.detail
