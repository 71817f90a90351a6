"""Turns drafts into records. All checks that data sets share are here, so that no importer can forget one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

from common.end_marks import is_one_answer_twice, without_end_mark
from common.errors import Refused
from common.importers.base import (
    MARKER,
    OTHER_MEDIA,
    Draft,
    Importer,
    other_columns,
    refuse_other_columns,
    refuse_other_media,
)
from common.importers.conversations import answer_text
from common.reading.image_intake import ImageIntake
from common.records import Dropped, PreferencePair, Prompt, Response

Record = TypeVar("Record", Prompt, PreferencePair)

MAX_ANSWER_CHARS = 50_000
MAX_PROMPT_CHARS = 100_000
MAX_ID_CHARS = 200
MAX_TRUTH_CHARS = 1_000_000
ALWAYS_READ = ("id", "video", "videos", "audio", "audios")
"""Columns that are no truth, whatever the importer: the row's id, which becomes a part of ours, and refused media."""

# What code that reads fields raises on a row of another shape. Refused is a ValueError.
_BROKEN_ROW = (
    TypeError,
    KeyError,
    ValueError,
    AttributeError,
    IndexError,
    RecursionError,
    OverflowError,
)


def outcomes(
    importer: Importer,
    number: int,
    row: Any,
    intake: ImageIntake,
    end_marks: Counter[str] | None = None,
) -> Iterator[PreferencePair | Prompt | Dropped]:
    """The records of row `number`, and Dropped for what of it is not used; at least one of either.

    Args:
        end_marks: counts the answers whose written-out end of a turn was taken off.
    """
    for result in unread(importer, number, row, end_marks):
        if isinstance(result, Dropped):
            yield result
        else:
            yield with_images(result, intake)


class Unread(NamedTuple, Generic[Record]):
    """A record that is checked but for its images, which are not read yet: what `ImageIntake.add` takes."""

    record: Record
    images: Sequence[Any]


def with_images(unread: Unread[Record], intake: ImageIntake) -> Record | Dropped:
    """The record with its images, or why they cannot be used."""
    record = unread.record
    try:
        images = tuple(intake.add(image) for image in unread.images)
    except _BROKEN_ROW as error:
        return _dropped(record.id, error)
    if isinstance(record, Prompt):
        return replace(record, images=images)
    return replace(record, prompt=replace(record.prompt, images=images))


def unread(
    importer: Importer,
    number: int,
    row: Any,
    end_marks: Counter[str] | None = None,
) -> Iterator[Unread[Any] | Dropped]:
    """As `outcomes`, with images that are not read."""
    row_id = f"{importer.name}/{number}"
    if isinstance(row, Dropped):
        yield row
        return
    count = 0
    try:
        if not isinstance(row, dict):
            raise Refused(
                "bad_row",
                f"expected a JSON object, got {type(row).__name__}; check NAME and PATH",
            )
        refuse_other_media(row)
        for draft in importer.convert(row):
            count += 1
            if isinstance(draft, Dropped):
                yield replace(draft, id=f"{row_id}/{draft.id}")
                continue
            if not draft.images:
                refuse_other_columns(row)
            if draft.exported is None:
                draft = replace(
                    draft,
                    chosen=answer_text(draft.chosen),
                    rejected=answer_text(draft.rejected),
                )
            draft = _without_end_marks(draft, end_marks)
            if draft.truth is None:
                read = (*importer.columns, *ALWAYS_READ)
                draft = replace(draft, truth=other_columns(row, read))
            yield _checked(importer, row_id, draft)
    except _BROKEN_ROW as error:
        yield _dropped(row_id, error)
        return
    if count == 0:
        yield Dropped(row_id, "no_pair", "the row holds nothing to import")


def _without_end_marks(draft: Draft, end_marks: Counter[str] | None) -> Draft:
    """The draft with answers that end with their text; sets that were decoded with a model's tokens have marks."""
    changed: dict[str, str] = {}
    for side in ("chosen", "rejected"):
        text = getattr(draft, side)
        if not isinstance(text, str):
            continue
        without = without_end_mark(text)
        if without != text:
            changed[side] = without
    if changed and end_marks is not None:
        end_marks["answers"] += len(changed)
    return replace(draft, **changed) if changed else draft  # type: ignore[arg-type]


def _checked(importer: Importer, row_id: str, draft: Draft) -> Unread[Any] | Dropped:
    """The checked record of a draft, or why there is none."""
    num_images = len(draft.images)
    try:
        record = _without_images(importer, row_id, draft)
        if isinstance(record, Prompt):
            _check_prompt(record, num_images, importer.text_only)
            if importer.needs_answer or record.reference is not None:
                _check_answer(Response(draft.chosen))
        else:
            _check_prompt(record.prompt, num_images, importer.text_only)
            _check_answers(record)
    except _BROKEN_ROW as error:
        dropped_id = draft.exported.id if draft.exported else row_id
        return _dropped(dropped_id, error)
    return Unread(record, draft.images)


def _without_images(
    importer: Importer, row_id: str, draft: Draft
) -> PreferencePair | Prompt:
    """The record of a draft before any check."""
    if draft.exported is not None:
        return draft.exported
    prompt_id = row_id
    if isinstance(draft.row_id, str | int):
        suffix = str(draft.row_id)
        if 0 < len(suffix) <= MAX_ID_CHARS:
            prompt_id = f"{row_id}:{suffix}"
    record_id = f"{prompt_id}/{draft.tag}" if draft.tag else prompt_id
    truth = draft.truth or None
    if importer.makes == "prompts":
        return Prompt(record_id, draft.messages, (), draft.chosen, truth)
    return PreferencePair(
        id=record_id,
        prompt=Prompt(prompt_id, draft.messages, (), truth=truth),
        chosen=Response(draft.chosen),
        rejected=Response(draft.rejected),
        source=importer.name,
        scores=draft.scores,
    )


def _check_prompt(prompt: Prompt, num_images: int, text_only: bool) -> None:
    if num_images == 0 and not text_only:
        raise Refused("image_none", "expected an image, got none; drop the row")
    num_slots = 0
    text = ""
    for message in prompt.messages:
        for part in message.parts:
            # A marker that stayed in a text counts: a processor would take it for an image.
            num_slots += (part.kind == "image") + part.text.count(MARKER)
            text += part.text
    for kind in OTHER_MEDIA:
        if f"<{kind}>" in text:
            raise Refused(
                kind, f"expected images only, got <{kind}> in the text; drop the row"
            )
    if num_slots != num_images:
        raise Refused(
            "image_count",
            f"expected an image per <image> marker, got {num_images} for {num_slots}; repair the row",
        )
    if not text.strip():
        raise Refused("prompt_empty", "expected a question, got no text; drop the row")
    if len(text) > MAX_PROMPT_CHARS:
        raise Refused(
            "prompt_too_long",
            f"expected a prompt of at most {MAX_PROMPT_CHARS:,} characters, got more",
        )
    if prompt.messages[-1].role != "user":
        raise Refused(
            "bad_row",
            "expected a prompt that ends with the user's turn, got another end; check the row",
        )
    truth = json.dumps(prompt.truth, ensure_ascii=False)
    if len(truth) > MAX_TRUTH_CHARS:
        raise Refused(
            "truth_too_long",
            f"expected at most {MAX_TRUTH_CHARS:,} characters in the columns beside prompt and answers, got "
            f"{len(truth):,}; leave some out",
        )
    _check_encodable(prompt.id + text + (prompt.reference or "") + truth)


def _check_answers(pair: PreferencePair) -> None:
    _check_answer(pair.chosen)
    _check_answer(pair.rejected)
    if is_one_answer_twice(pair):
        raise Refused(
            "pair_identical",
            "expected two different answers, got the same twice; drop the row",
        )
    _check_encodable(pair.id + pair.source)


def _check_answer(answer: Response) -> None:
    text = answer.text
    if text is None:
        raise Refused("answer_empty", "expected an answer, got none; drop the row")
    if not isinstance(text, str):
        raise Refused(
            "bad_row",
            f"expected an answer's text, got {type(text).__name__}; check the data set",
        )
    # An answer of special tokens alone has an empty text.
    if not text.strip() and answer.token_ids is None:
        raise Refused("answer_empty", "expected an answer, got none; drop the row")
    if len(text) > MAX_ANSWER_CHARS:
        raise Refused(
            "answer_too_long",
            f"expected at most {MAX_ANSWER_CHARS:,} characters, got {len(text):,}; drop the row",
        )
    _check_encodable(text)


def _check_encodable(text: str) -> None:
    """Raise UnicodeEncodeError (a ValueError) for lone surrogates, which JSON can spell and parquet cannot store."""
    text.encode()


def _dropped(row_id: str, error: Exception) -> Dropped:
    if isinstance(error, Refused):
        return Dropped(row_id, error.reason, str(error))
    return Dropped(
        row_id,
        "bad_row",
        f"expected a row of this data set, got {type(error).__name__}: {error}"[:300],
    )
