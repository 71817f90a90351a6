"""Turns drafts into records. All checks that data sets share are here, so that no importer can forget one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from common.end_marks import is_one_answer_twice, without_end_mark
from common.errors import Refused
from common.importers.base import MARKER, Draft, Importer
from common.reading.image_intake import ImageIntake
from common.records import Dropped, PreferencePair, Prompt, Response

MAX_ANSWER_CHARS = 50_000
MAX_PROMPT_CHARS = 100_000
MAX_ID_CHARS = 200

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
        for draft in importer.convert(row):
            count += 1
            if isinstance(draft, Dropped):
                yield replace(draft, id=f"{row_id}/{draft.id}")
                continue
            draft = _without_end_marks(draft, end_marks)
            yield _record(importer, row_id, draft, intake)
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


def _record(
    importer: Importer, row_id: str, draft: Draft, intake: ImageIntake
) -> PreferencePair | Prompt | Dropped:
    """The checked record of a draft, or why there is none."""
    try:
        record = _without_images(importer, row_id, draft)
        if isinstance(record, Prompt):
            _check_prompt(record, len(draft.images), importer.text_only)
            _check_answer(Response(draft.chosen))
        else:
            _check_prompt(record.prompt, len(draft.images), importer.text_only)
            _check_answers(record)
        images = tuple(intake.add(image) for image in draft.images)
    except _BROKEN_ROW as error:
        dropped_id = draft.exported.id if draft.exported else row_id
        return _dropped(dropped_id, error)
    if isinstance(record, Prompt):
        return replace(record, images=images)
    return replace(record, prompt=replace(record.prompt, images=images))


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
    if importer.makes == "prompts":
        return Prompt(record_id, draft.messages, (), reference=draft.chosen)
    return PreferencePair(
        id=record_id,
        prompt=Prompt(prompt_id, draft.messages, ()),
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
