"""TRL's VLM preference format: our pairs as its rows, and its rows as our records.

images   [{bytes, path}]                              `datasets` loads them as Image
prompt   [{role, content: [{type, text}]}]            chosen and rejected: one assistant message each
sightline_meta                                        JSON of what TRL has no column for; TRL ignores it
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from common.errors import Refused
from common.images import read_bytes
from common.records import Message, Part, PreferencePair, Prompt, Response

META = "sightline_meta"

_CONTENT = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", _CONTENT)]))
_STRING = {"dtype": "string", "_type": "Value"}
_MESSAGE_FEATURES = [{"role": _STRING, "content": [{"type": _STRING, "text": _STRING}]}]
_FEATURES = {
    "images": [{"_type": "Image"}],
    "prompt": _MESSAGE_FEATURES,
    "chosen": _MESSAGE_FEATURES,
    "rejected": _MESSAGE_FEATURES,
    META: _STRING,
}
TRL_SCHEMA = pa.schema(
    [
        (
            "images",
            pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ),
        ("prompt", _MESSAGES),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        (META, pa.string()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)

_Tokens = tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None


class _Meta(BaseModel):
    """What `sightline_meta` holds: all of a pair but its messages, texts and images."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: str
    source: str
    prompt_id: str
    reference: str | None
    truth: dict[str, Any] | None
    weight_version: Annotated[int, Field(ge=0, lt=2**63)] | None
    scores: tuple[float, float] | None
    prompt_token_ids: _Tokens
    chosen_token_ids: _Tokens
    rejected_token_ids: _Tokens


def trl_row(pair: PreferencePair) -> dict[str, Any]:
    """A row of `TRL_SCHEMA` (Refused `image_missing`, `image_changed` when a file is not what it was)."""
    images = [
        {"bytes": read_bytes(ref), "path": PurePosixPath(ref.path).name}
        for ref in pair.prompt.images
    ]
    meta = {
        "id": pair.id,
        "source": pair.source,
        "prompt_id": pair.prompt.id,
        "reference": pair.prompt.reference,
        "truth": pair.prompt.truth,
        "weight_version": pair.weight_version,
        "scores": pair.scores,
        "prompt_token_ids": pair.prompt_token_ids,
        "chosen_token_ids": pair.chosen.token_ids,
        "rejected_token_ids": pair.rejected.token_ids,
    }
    return {
        "images": images,
        "prompt": [_message_row(message) for message in pair.prompt.messages],
        "chosen": [
            _message_row(Message("assistant", (Part("text", pair.chosen.text),)))
        ],
        "rejected": [
            _message_row(Message("assistant", (Part("text", pair.rejected.text),)))
        ],
        META: json.dumps(meta, ensure_ascii=False),
    }


def pair_of_meta(
    meta: Any, messages: tuple[Message, ...], chosen: str | None, rejected: str | None
) -> PreferencePair:
    """Our own pair again, but for its images (ValueError when `meta` is not what `trl_row` writes)."""
    found = _Meta.model_validate_json(meta)
    return PreferencePair(
        found.id,
        Prompt(found.prompt_id, messages, (), found.reference, found.truth),
        Response(chosen or "", found.chosen_token_ids),
        Response(rejected or "", found.rejected_token_ids),
        found.source,
        found.weight_version,
        found.prompt_token_ids,
        found.scores,
    )


def read_messages(items: Any, num_images: int) -> tuple[Message, ...]:
    """A prompt, which may be a plain text (Refused `bad_row`, `role_unknown`)."""
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list):
        raise Refused(
            "bad_row",
            f"expected a list of messages, got {type(items).__name__}; check the data set",
        )
    messages: list[Message] = []
    left = num_images
    for item in items:
        role, content = item["role"], item["content"]
        if role not in ("system", "user", "assistant"):
            raise Refused(
                "role_unknown",
                f"expected system, user or assistant, got {str(role)[:40]!r}; drop the row",
            )
        if isinstance(content, str):
            opening = left if role == "user" else 0
            left -= opening
            parts = (*(Part("image") for _ in range(opening)), Part("text", content))
        else:
            parts = tuple(_part(part) for part in content)
        messages.append(Message(role, parts))
    return tuple(messages)


def read_answer(items: Any) -> str | None:
    """The text of one assistant message, or a plain text; None when there is none (Refused `bad_row`)."""
    if items is None or isinstance(items, str):
        return items
    turns = read_messages(items, 0)
    if not turns:
        return None
    texts = [part.text for part in turns[0].parts if part.kind == "text"]
    if (
        len(turns) > 1
        or turns[0].role != "assistant"
        or len(texts) != len(turns[0].parts)
        or len(texts) > 1
    ):
        raise Refused(
            "bad_row",
            "expected one assistant message with one text as an answer, got more; drop the row",
        )
    return texts[0] if texts else None


def _part(part: dict[str, Any]) -> Part:
    if part["type"] == "image":
        return Part("image", part.get("text") or "")
    if part["type"] != "text" or not isinstance(part["text"], str):
        raise Refused(
            "bad_row",
            f"expected parts of type image or text, got {str(part['type'])[:40]!r}; drop the row",
        )
    return Part("text", part["text"])


def _message_row(message: Message) -> dict[str, Any]:
    content = [
        {"type": part.kind, "text": part.text or (None if part.kind == "image" else "")}
        for part in message.parts
    ]
    return {"role": message.role, "content": content}
