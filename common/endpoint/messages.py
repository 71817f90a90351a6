"""Conversations in OpenAI's message format, images inlined as `data:` URLs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from common.data.images import read
from common.records import ImageRef, Prompt

_ENDPOINT_FORMATS = ("png", "jpeg", "webp")


def chat_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The conversation with its images (Refused for an image that cannot be used)."""
    images = iter(prompt.images)
    messages: list[dict[str, Any]] = []
    for message in prompt.messages:
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if part.kind == "text":
                content.append({"type": "text", "text": part.text})
                continue
            url = {"url": data_url(next(images))}
            content.append({"type": "image_url", "image_url": url})
        messages.append({"role": message.role, "content": content})
    return messages


def data_url(ref: ImageRef) -> str:
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
