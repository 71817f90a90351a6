"""Records as parquet rows and back: the columns, and the checks that a row must pass to become a record.

`truth` is stored as JSON text, token ids as int32, image paths relative to the data set's ImageStore.
"""

from __future__ import annotations

import json
from typing import Any, get_args, get_type_hints

import pyarrow as pa

from common.data.images import ImageStore, read_bytes
from common.end_marks import is_one_answer_twice
from common.errors import Refused
from common.records import ImageRef, Message, Part, PreferencePair, Prompt, Response

_TOKENS = pa.list_(pa.int32())
_PART = pa.struct([("kind", pa.string()), ("text", pa.string())])
_MESSAGE = pa.struct([("role", pa.string()), ("parts", pa.list_(_PART))])
_IMAGE = pa.struct([("sha256", pa.string()), ("path", pa.string())])
_LOGPROBS = pa.list_(pa.float64())
# Sets of earlier versions lack `token_logprobs`, and a cast fills it with nulls.
_RESPONSE = pa.struct(
    [("text", pa.string()), ("token_ids", _TOKENS), ("token_logprobs", _LOGPROBS)]
)
PROMPT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.list_(_MESSAGE)),
        ("images", pa.list_(_IMAGE)),
        ("reference", pa.string()),
        ("truth", pa.string()),
    ]
)
PAIR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.struct(list(PROMPT_SCHEMA))),
        ("chosen", _RESPONSE),
        ("rejected", _RESPONSE),
        ("source", pa.string()),
        ("weight_version", pa.int64()),
        ("prompt_token_ids", _TOKENS),
        ("scores", pa.list_(pa.float64())),
    ]
)
_ROLES = get_args(get_type_hints(Message)["role"])
_KINDS = get_args(get_type_hints(Part)["kind"])


def python_rows(table: pa.Table | pa.RecordBatch) -> list[Any]:
    """Every row as a dict, or the exception that converting it raises: invalid UTF-8, a time out of Python's range."""
    try:
        return list(table.to_pylist())
    except (ValueError, ArithmeticError) as error:
        # pyarrow converts a table or nothing of it: bisect until the broken row stands alone.
        if len(table) == 1:
            return [error]
        middle = len(table) // 2
        first_half = python_rows(table.slice(0, middle))
        second_half = python_rows(table.slice(middle))
        return first_half + second_half


def texts_of(column: pa.Array) -> list[str]:
    """A column of ids. Those that are no UTF-8 are told apart by their bytes; their rows are dropped when read."""
    try:
        return [str(text) for text in column.to_pylist()]
    except UnicodeDecodeError:
        as_bytes = column.cast(pa.binary()).to_pylist()
        return [str(text) for text in as_bytes]


def pair_row(pair: PreferencePair, store: ImageStore) -> dict[str, Any]:
    """A row of `PAIR_SCHEMA`; images that lie outside `store` are copied into it (Refused when one is gone)."""
    return {
        "id": pair.id,
        "prompt": prompt_row(pair.prompt, store),
        "chosen": _response_row(pair.chosen),
        "rejected": _response_row(pair.rejected),
        "source": pair.source,
        "weight_version": pair.weight_version,
        "prompt_token_ids": pair.prompt_token_ids,
        "scores": pair.scores,
    }


def _response_row(response: Response) -> dict[str, Any]:
    return {
        "text": response.text,
        "token_ids": response.token_ids,
        "token_logprobs": response.token_logprobs,
    }


def prompt_row(prompt: Prompt, store: ImageStore) -> dict[str, Any]:
    """A row of `PROMPT_SCHEMA`; images that lie outside `store` are copied into it."""
    messages = []
    for message in prompt.messages:
        parts = [{"kind": part.kind, "text": part.text} for part in message.parts]
        messages.append({"role": message.role, "parts": parts})
    images = [
        {"sha256": ref.sha256, "path": _stored_path(ref, store)}
        for ref in prompt.images
    ]
    truth = None
    if prompt.truth is not None:
        truth = json.dumps(prompt.truth, ensure_ascii=False)
    return {
        "id": prompt.id,
        "messages": messages,
        "images": images,
        "reference": prompt.reference,
        "truth": truth,
    }


def _stored_path(ref: ImageRef, store: ImageStore) -> str:
    """The image's path relative to `store`, which gets a copy if it lies elsewhere (Refused if it is gone)."""
    try:
        return store.relative(ref)
    except ValueError:
        return store.relative(store.add_bytes(read_bytes(ref), ref.path))


def pair_of(row: dict[str, Any], store: ImageStore) -> PreferencePair:
    """The pair that a row of `PAIR_SCHEMA` holds.

    Raises:
        Refused: `path_outside`, `image_missing`, `image_count`, `bad_truth`, `pair_identical`.
        ValueError, TypeError, KeyError: the row is broken in another way.
    """
    scores = row["scores"]
    if scores is not None:
        if len(scores) != 2:
            raise ValueError(f"expected two scores, got {len(scores)}")
        scores = (scores[0], scores[1])
    pair = PreferencePair(
        id=_text(row["id"]),
        prompt=prompt_of(row["prompt"], store),
        chosen=_response_of(row["chosen"]),
        rejected=_response_of(row["rejected"]),
        source=_text(row["source"]),
        weight_version=row["weight_version"],
        prompt_token_ids=_token_ids(row["prompt_token_ids"]),
        scores=scores,
    )
    if is_one_answer_twice(pair):
        raise Refused(
            "pair_identical",
            f"pair {pair.id}: expected two different answers, got the same twice; take it out",
        )
    return pair


def _response_of(row: dict[str, Any]) -> Response:
    logprobs = row["token_logprobs"]
    return Response(
        _text(row["text"]),
        _token_ids(row["token_ids"]),
        None if logprobs is None else tuple(logprobs),
    )


def _token_ids(token_ids: list[int] | None) -> tuple[int, ...] | None:
    return None if token_ids is None else tuple(token_ids)


def prompt_of(row: dict[str, Any], store: ImageStore) -> Prompt:
    """The prompt that a row of `PROMPT_SCHEMA` holds; errors as for `pair_of`."""
    messages = tuple(message_of(message) for message in row["messages"])
    images = tuple(
        store.resolve(_text(ref["sha256"]), _text(ref["path"])) for ref in row["images"]
    )
    num_slots = 0
    for message in messages:
        num_slots += sum(part.kind == "image" for part in message.parts)
    if num_slots != len(images):
        raise Refused(
            "image_count",
            f"prompt {row['id']}: expected an image per image part, got {len(images)} for {num_slots}; repair the row",
        )
    return Prompt(
        id=_text(row["id"]),
        messages=messages,
        images=images,
        reference=row["reference"],
        truth=_truth_of(row),
    )


def _truth_of(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["truth"] is None:
        return None
    try:
        truth = json.loads(row["truth"])
    except (ValueError, RecursionError) as error:
        truth = error
    if not isinstance(truth, dict):
        raise Refused(
            "bad_truth",
            f"prompt {row['id']}: expected truth as a JSON object, got {truth}; repair the row",
        )
    return truth


def message_of(row: dict[str, Any]) -> Message:
    """A message of a row of `PROMPT_SCHEMA` (Refused, ValueError when it is none of ours)."""
    if row["role"] not in _ROLES:
        raise ValueError(f"expected a role of {_ROLES}, got {row['role']!r}")
    parts = []
    for part in row["parts"]:
        if part["kind"] in ("video", "audio"):
            raise Refused(part["kind"], f"expected images only, got a {part['kind']}")
        if part["kind"] not in _KINDS:
            raise ValueError(f"expected a part of {_KINDS}, got {part['kind']!r}")
        parts.append(Part(part["kind"], _text(part["text"])))
    return Message(row["role"], tuple(parts))


def _text(value: str | None) -> str:
    if value is None:
        raise ValueError("expected a text, got null")
    return value
