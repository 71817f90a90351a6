"""TRL's preference format for vision-language models: our pairs as its rows; `common.importers.trl` reads such rows.

images             [{bytes, path}], which `datasets` loads as Image
prompt             [{role, content: [{type, text}]}]
chosen, rejected   one assistant message each, in the same form
sightline_meta     JSON of what TRL has no column for; TRL ignores it
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from common.data.images import read_bytes
from common.records import Message, Part, PreferencePair, Prompt, Response

TRAIN = "train.parquet"
"""The file of an export."""
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
    """What `sightline_meta` holds: everything of a pair but its messages, texts, images, and log-probs."""

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
    """A row of `TRL_SCHEMA`, images included.

    Raises:
        Refused: `image_missing`, `image_changed` when an image file is no longer what it was.
    """
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
        "chosen": [_answer_row(pair.chosen)],
        "rejected": [_answer_row(pair.rejected)],
        META: json.dumps(meta, ensure_ascii=False),
    }


def pair_of_meta(
    meta: Any,
    messages: tuple[Message, ...],
    chosen: str | None,
    rejected: str | None,
) -> PreferencePair:
    """The pair that `trl_row` exported, without its images (ValueError when `meta` is not what it writes)."""
    fields = _Meta.model_validate_json(meta)
    prompt = Prompt(
        id=fields.prompt_id,
        messages=messages,
        images=(),
        reference=fields.reference,
        truth=fields.truth,
    )
    return PreferencePair(
        id=fields.id,
        prompt=prompt,
        chosen=Response(chosen or "", fields.chosen_token_ids),
        rejected=Response(rejected or "", fields.rejected_token_ids),
        source=fields.source,
        weight_version=fields.weight_version,
        prompt_token_ids=fields.prompt_token_ids,
        scores=fields.scores,
    )


def _message_row(message: Message) -> dict[str, Any]:
    content: list[dict[str, str | None]] = []
    for part in message.parts:
        # TRL's own rows have null as the text of an image part.
        no_text = None if part.kind == "image" else ""
        content.append({"type": part.kind, "text": part.text or no_text})
    return {"role": message.role, "content": content}


def _answer_row(response: Response) -> dict[str, Any]:
    return _message_row(Message("assistant", (Part("text", response.text),)))
