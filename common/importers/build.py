"""Drafts into records. Every check that all sets share is here, so that no importer can forget one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from common.errors import Refused
from common.importers.base import MARKER, Draft, Importer
from common.importers.image_intake import ImageIntake
from common.records import Dropped, ImageRef, PreferencePair, Prompt, Response
from common.sources import RLOO

MAX_ANSWER_CHARS = 50_000
MAX_PROMPT_CHARS = 100_000
MAX_ID_CHARS = 200

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
    importer: Importer, number: int, row: Any, intake: ImageIntake
) -> Iterator[PreferencePair | Prompt | Dropped]:
    """What becomes of row `number`: records, or why there is none; at least one of either."""
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
            else:
                yield _record(importer, row_id, draft, intake)
    except _BROKEN_ROW as error:
        yield _dropped(row_id, error)
    else:
        if count == 0:
            yield Dropped(row_id, "no_pair", "the row holds nothing to import")


def _record(
    importer: Importer, row_id: str, draft: Draft, intake: ImageIntake
) -> PreferencePair | Prompt | Dropped:
    try:
        record = _unchecked(importer, row_id, draft)
        prompt = record if isinstance(record, Prompt) else record.prompt
        _check_prompt(prompt, len(draft.images), importer.text_only)
        if isinstance(record, PreferencePair):
            _check_answers(record)
        else:
            _check_answer(Response(draft.chosen))
        images = tuple(intake.add(image) for image in draft.images)
    except _BROKEN_ROW as error:
        return _dropped(draft.kept.id if draft.kept else row_id, error)
    return _with_images(record, images)


def _unchecked(
    importer: Importer, row_id: str, draft: Draft
) -> PreferencePair | Prompt:
    if draft.kept is not None:
        return draft.kept
    own = str(draft.own_id) if isinstance(draft.own_id, str | int) else ""
    prompt_id = f"{row_id}:{own}" if 0 < len(own) <= MAX_ID_CHARS else row_id
    tagged = f"{prompt_id}/{draft.tag}" if draft.tag else prompt_id
    if importer.makes == "prompts":
        return Prompt(tagged, draft.messages, (), draft.chosen)
    prompt = Prompt(prompt_id, draft.messages, ())
    return PreferencePair(
        tagged,
        prompt,
        Response(draft.chosen),
        Response(draft.rejected),
        importer.name,
        scores=draft.scores,
    )


def _check_prompt(prompt: Prompt, num_images: int, text_only: bool) -> None:
    if num_images == 0 and not text_only:
        raise Refused("image_none", "expected an image, got none; drop the row")
    parts = [part for message in prompt.messages for part in message.parts]
    slots = sum((part.kind == "image") + part.text.count(MARKER) for part in parts)
    if slots != num_images:
        raise Refused(
            "image_count",
            f"expected an image per <image> marker, got {num_images} for {slots}; repair the row",
        )
    texts = [part.text for part in parts]
    if not "".join(texts).strip():
        raise Refused("prompt_empty", "expected a question, got no text; drop the row")
    if sum(map(len, texts)) > MAX_PROMPT_CHARS:
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
    "".join(
        (prompt.id, *texts, prompt.reference or "", truth)
    ).encode()  # lone surrogates cannot be stored


def _check_answers(pair: PreferencePair) -> None:
    for answer in (pair.chosen, pair.rejected):
        _check_answer(answer)
    same_ids = pair.chosen.token_ids == pair.rejected.token_ids
    same = same_ids and pair.chosen.text.strip() == pair.rejected.text.strip()
    if (
        same and pair.source != RLOO
    ):  # with advantages each side is trained on for itself
        raise Refused(
            "pair_identical",
            "expected two different answers, got the same twice; drop the row",
        )
    (pair.id + pair.source).encode()


def _check_answer(answer: Response) -> None:
    text = answer.text
    if text is None or (
        isinstance(text, str) and not text.strip() and answer.token_ids is None
    ):
        raise Refused("answer_empty", "expected an answer, got none; drop the row")
    if not isinstance(text, str):
        raise Refused(
            "bad_row",
            f"expected an answer's text, got {type(text).__name__}; check the data set",
        )
    if len(text) > MAX_ANSWER_CHARS:
        raise Refused(
            "answer_too_long",
            f"expected at most {MAX_ANSWER_CHARS:,} characters, got {len(text):,}; drop the row",
        )
    text.encode()


def _with_images(
    record: PreferencePair | Prompt, images: tuple[ImageRef, ...]
) -> PreferencePair | Prompt:
    if isinstance(record, Prompt):
        return replace(record, images=images)
    return replace(record, prompt=replace(record.prompt, images=images))


def _dropped(row_id: str, error: Exception) -> Dropped:
    if isinstance(error, Refused):
        return Dropped(row_id, error.reason, str(error))
    return Dropped(
        row_id,
        "bad_row",
        f"expected a row of this data set, got {type(error).__name__}: {error}"[:300],
    )
