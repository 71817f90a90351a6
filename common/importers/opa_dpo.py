"""OPA-DPO: a `save_to_disk` folder of `{queries, image_bytes, AI_pseudo_response, original_generate_response}`.

`image_bytes` is base64 text or a data: URL, the pseudo response is chosen and the original one rejected. Where Vicuna's
template was left around a query, it is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import Draft, Importer, question, text_field
from common.importers.conversations import strip_vicuna
from common.reading.encoded_images import decode


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row; Refused `bad_template`."""
    image = row.get("image_bytes")
    if isinstance(image, str):
        image = decode(image)
    images = [image] if image else []
    text = strip_vicuna(text_field(row, "queries"))
    yield Draft(
        question(text, len(images)),
        images,
        row.get("AI_pseudo_response"),
        row.get("original_generate_response"),
    )


COLUMNS = ("queries", "image_bytes", "AI_pseudo_response", "original_generate_response")

IMPORTER = Importer("opa_dpo", convert, "zhyang2226/OPA-DPO", columns=COLUMNS)
