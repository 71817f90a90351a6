"""The request that makes a language model inject an error: the templates of `injection_templates/`, rendered."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.config.povid import ErrorKind
from common.conversation import question_of
from common.endpoint.messages import data_url
from common.records import Prompt

TEMPLATES = Path(__file__).parent / "injection_templates"
# No escaping: the result is plain text for a model.
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    undefined=StrictUndefined,
    trim_blocks=True,
)


def render_messages(
    prompt: Prompt,
    kind: ErrorKind,
    send_image: bool,
) -> list[dict[str, Any]]:
    """The request in OpenAI's message format, images as data: URLs (Refused for one that cannot be used)."""
    images: list[dict[str, Any]] = []
    if send_image:
        for ref in prompt.images:
            url = {"url": data_url(ref)}
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
