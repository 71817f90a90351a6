"""Parts of a message's content as chat formats spell them: transformers', OpenAI's, Qwen's, Anthropic's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from common.errors import Refused

_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image")
# Where a part of an image has it; the first that is there counts.
_IMAGE_KEYS = ("image", "image_url", "url", "path", "base64", "source")
_OTHER_MEDIA = ("video", "audio")


class ContentPart(NamedTuple):
    """A text, or the place of an image, which may bring the image along (`image` is None where it does not)."""

    kind: Literal["text", "image"]
    text: str = ""
    image: Any = None


def read_content(content: Any) -> list[ContentPart]:
    """The parts of a message's content, which may be a plain text.

    Raises:
        Refused: `bad_row`; `video`, `audio` for parts of these kinds.
    """
    if isinstance(content, str):
        return [ContentPart("text", content)]
    if not isinstance(content, list):
        raise Refused(
            "bad_row",
            f"expected a text or a list of parts as content, got {type(content).__name__}; check the data set",
        )
    return [_read_part(part) for part in content]


def _read_part(part: Any) -> ContentPart:
    if isinstance(part, str):
        return ContentPart("text", part)
    if not isinstance(part, Mapping):
        raise Refused(
            "bad_row",
            f"expected a part with a type, got {type(part).__name__}; check the data set",
        )
    kind = part.get("type") or _kind_of_untyped(part)
    if kind in _IMAGE_TYPES:
        text = part.get("text")
        return ContentPart("image", text if isinstance(text, str) else "", _image(part))
    text = part.get("text")
    if kind in _TEXT_TYPES and isinstance(text, str):
        return ContentPart("text", text)
    for medium in _OTHER_MEDIA:
        if isinstance(kind, str) and medium in kind:
            raise Refused(medium, f"expected images only, got a {medium}; drop the row")
    raise Refused(
        "bad_row",
        f"expected parts of type image or text, got {str(kind)[:40]!r}; drop the row",
    )


def _kind_of_untyped(part: Mapping[str, Any]) -> str | None:
    """Qwen's files have parts without a type, {"image": …} and {"text": …}."""
    for key in ("image", "image_url", "video", "audio", "text"):
        if part.get(key) is not None:
            return key
    return None


def _image(part: Mapping[str, Any]) -> Any:
    """The image that a part brings along, as `ImageIntake.add` takes it."""
    for key in _IMAGE_KEYS:
        image = part.get(key)
        if image is None:
            continue
        if isinstance(image, Mapping) and "bytes" not in image:
            # OpenAI's {url, detail}, Anthropic's {type, media_type, data}.
            image = image.get("url") or image.get("data") or image.get("path")
        return image
    return None
