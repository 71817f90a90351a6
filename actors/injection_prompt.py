"""What a language model is asked when it shall inject an error: the templates of `injection_templates/`, rendered."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.images import read
from common.povid_config import ErrorKind
from common.records import ImageRef, Prompt

TEMPLATES = Path(__file__).parent / "injection_templates"
# No escaping: what is rendered is plain text for a model.
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True
)


def question_of(prompt: Prompt) -> str:
    """The text of the conversation; speakers are named where there is more than one turn."""
    turns = [
        (m.role, "\n".join(part.text for part in m.parts if part.kind == "text"))
        for m in prompt.messages
    ]
    return (
        turns[0][1]
        if len(turns) == 1
        else "\n".join(f"{role}: {text}" for role, text in turns)
    )


def render_messages(
    prompt: Prompt, kind: ErrorKind, send_image: bool
) -> list[dict[str, Any]]:
    """The request in OpenAI's message format, images as data: URLs (Refused for one that cannot be used)."""
    images = [
        {"type": "image_url", "image_url": {"url": _data_url(ref)}}
        for ref in prompt.images
        if send_image
    ]
    text = _ENVIRONMENT.get_template(f"{kind}.jinja").render(
        question=question_of(prompt), answer=prompt.reference, num_images=len(images)
    )
    return [
        {
            "role": "user",
            "content": [*images, {"type": "text", "text": text}] if images else text,
        }
    ]


def templates_hash() -> str:
    """A hash over the templates; sets made with different ones are not to be mixed."""
    digest = hashlib.sha256()
    for path in sorted(TEMPLATES.glob("*.jinja")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _data_url(ref: ImageRef) -> str:
    """The image file itself where endpoints know its format, else its pixels as PNG."""
    pixels, data, kind = (
        read(ref),
        Path(ref.path).read_bytes(),
        Path(ref.path).suffix[1:],
    )
    if kind not in ("png", "jpeg", "webp"):
        buffer = io.BytesIO()
        pixels.save(buffer, "PNG")
        data, kind = buffer.getvalue(), "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
