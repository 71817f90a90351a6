"""The request that makes a language model inject an error: the templates of `injection_templates/`, rendered."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.config.povid import ErrorKind
from common.data.images import read
from common.records import ImageRef, Message, Prompt

TEMPLATES = Path(__file__).parent / "injection_templates"
_ENDPOINT_FORMATS = ("png", "jpeg", "webp")
# No escaping: the result is plain text for a model.
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    undefined=StrictUndefined,
    trim_blocks=True,
)


def question_of(prompt: Prompt) -> str:
    """The text of the conversation; speakers are named if it has more than one turn."""
    if len(prompt.messages) == 1:
        return _text_of(prompt.messages[0])
    turns = []
    for message in prompt.messages:
        text = _text_of(message)
        turns.append(f"{message.role}: {text}")
    return "\n".join(turns)


def _text_of(message: Message) -> str:
    texts = [part.text for part in message.parts if part.kind == "text"]
    return "\n".join(texts)


def render_messages(
    prompt: Prompt,
    kind: ErrorKind,
    send_image: bool,
) -> list[dict[str, Any]]:
    """The request in OpenAI's message format, images as data: URLs (Refused for one that cannot be used)."""
    images: list[dict[str, Any]] = []
    if send_image:
        for ref in prompt.images:
            url = {"url": _data_url(ref)}
            images.append({"type": "image_url", "image_url": url})
    template = _ENVIRONMENT.get_template(f"{kind}.jinja")
    text = template.render(
        question=question_of(prompt),
        answer=prompt.reference,
        num_images=len(images),
    )
    # Endpoints without vision know only plain strings.
    content: Any = text
    if images:
        content = [*images, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def templates_hash() -> str:
    """A hash over the templates; sets made with different ones are not to be mixed."""
    digest = hashlib.sha256()
    for path in sorted(TEMPLATES.glob("*.jinja")):
        digest.update(f"{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _data_url(ref: ImageRef) -> str:
    """The image file itself if endpoints know its format, else its pixels as PNG."""
    path = Path(ref.path)
    # Also where the pixels are not used: `read` checks the file.
    pixels = read(ref)
    kind = path.suffix[1:]
    if kind in _ENDPOINT_FORMATS:
        data = path.read_bytes()
    else:
        buffer = io.BytesIO()
        pixels.save(buffer, "PNG")
        data = buffer.getvalue()
        kind = "png"
    encoded = base64.b64encode(data).decode()
    return f"data:image/{kind};base64,{encoded}"
