"""Rows as other tools' users have them, of one picture and one question: what the tables of variants are made of."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from common.data.images import ImageStore
from common.importers import load
from common.importers.build import outcomes
from common.reading.image_intake import ImageIntake
from tests.common.importer_cases import PICTURE, gpt

EMBEDDED = {"bytes": PICTURE, "path": None}
BASE64 = base64.b64encode(PICTURE).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"
SIDES = {"chosen": "A.", "rejected": "B."}


def said(role: str, content: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


ASKED = said("user", [{"type": "image"}, text("What?")])
A = said("assistant", "A.")
B = said("assistant", "B.")
ANSWERS = {"chosen": A, "rejected": B}
TURN_SIDES = {"chosen": gpt("A."), "rejected": gpt("B.")}
SWIFT = {
    "messages": said("user", "<image>What?") + A,
    "rejected_response": "B.",
    "images": ["a.png"],
}


def part(**image: Any) -> dict[str, Any]:
    """A TRL row without a column of images: the part brings it along."""
    return {"prompt": said("user", [image, text("What?")]), **ANSWERS}


def outcomes_of(importer: str, row: Any, root: Path) -> list[Any]:
    intake = ImageIntake(root, ImageStore(root / "store"))
    return list(outcomes(load(importer), 0, row, intake))


def question_of(turns: Any) -> dict[str, Any]:
    return {"images": ["a.png"], "prompt": turns, **ANSWERS}
