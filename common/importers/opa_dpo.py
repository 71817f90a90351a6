"""OPA-DPO: a `save_to_disk` folder with queries, image_bytes (base64 text), AI_pseudo_response (chosen) and
original_generate_response (rejected). A Vicuna template left around a query is cut off.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from common.importers.base import Draft, Importer, question, text_field
from common.importers.conversations import strip_vicuna


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """One pair; Refused `bad_template`."""
    image = row.get("image_bytes")
    if isinstance(image, str):
        image = base64.b64decode(image, validate=True)
    images = [image] if image else []
    asked = question(strip_vicuna(text_field(row, "queries")), len(images))
    yield Draft(
        asked,
        images,
        row.get("AI_pseudo_response"),
        row.get("original_generate_response"),
    )


IMPORTER = Importer("opa_dpo", convert, "zhyang2226/OPA-DPO")
