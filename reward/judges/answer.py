"""Verifiable rewards: an answer is held against the right one, which stands in the prompt's row.

Where several right answers are given, the one that fits best counts. An answer in which nothing can be read is wrong
(0); a row without a right answer has no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from common.config import AnswerJudge as Settings
from common.data.images import read
from common.errors import Refused
from common.records import Dropped, Prompt, RolloutGroup, Verdict
from reward.judges.boxes import Box, box_of, iou, read_box, to_unit
from reward.judges.final_answer import (
    final_answer,
    normalized,
    read_choice,
    read_number,
)

ROUNDING = 1e-9
"""Share of the true number that is never a difference: 0.1 + 0.2 is 0.3."""


class AnswerJudge:
    """Scores by `settings.rule`. Deterministic, and asks nobody."""

    name = "answer"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        rules: dict[str, Callable[[Prompt, str, Any], float]] = {
            "exact": _exact,
            "text": _text,
            "number": self._number,
            "choice": self._choice,
            "box": self._box,
        }
        self._rule = rules[settings.rule]

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        """One verdict per group, in order; a group whose row has no usable answer is dropped as `judge_failed`."""
        verdicts: list[Verdict | Dropped] = []
        for group in groups:
            try:
                verdicts.append(self._judge_group(group))
            except Refused as error:
                detail = f"judge answer, prompt {group.prompt.id}: {error}"
                verdicts.append(Dropped(group.id, "judge_failed", detail))
        return verdicts

    def _judge_group(self, group: RolloutGroup) -> Verdict:
        right_answers = self._right_answers(group.prompt)
        scores: list[float] = []
        for completion in group.completions:
            fits = []
            for right in right_answers:
                fits.append(self._rule(group.prompt, completion.text, right))
            scores.append(max(fits))
        note = f"right: {' or '.join(map(str, right_answers))}"
        return Verdict(tuple(scores), (note,) * len(scores))

    def _right_answers(self, prompt: Prompt) -> list[Any]:
        """The answers of the column, at least one (Refused when there is none)."""
        column = self._settings.column
        if column:
            value = (prompt.truth or {}).get(column)
        else:
            value = prompt.reference
        # Four numbers are one box; of anything else a list holds several answers.
        is_box = self._settings.rule == "box" and box_of(value, "xyxy") is not None
        several = list(value) if isinstance(value, list | tuple) else [value]
        answers = [value] if is_box else several
        if not answers or None in answers:
            name = f"the column {column!r}" if column else "a reference"
            raise Refused(
                "no_truth", f"expected the right answer in {name}, got {value!r:.80}"
            )
        return answers

    def _number(self, prompt: Prompt, text: str, right: Any) -> float:
        true = read_number(str(right))
        if true is None:
            raise Refused("no_truth", f"expected a number, got {right!r:.80}")
        number = read_number(final_answer(text))
        if number is None:
            return 0.0
        allowed = max(self._settings.tolerance, ROUNDING) * abs(true)
        return float(abs(number - true) <= allowed)

    def _choice(self, prompt: Prompt, text: str, right: Any) -> float:
        options = self._options(prompt)
        true = _letter_of(right, options)
        if true is None:
            raise Refused(
                "no_truth", f"expected a letter, index or option, got {right!r:.80}"
            )
        return float(read_choice(final_answer(text), options) == true)

    def _options(self, prompt: Prompt) -> list[str]:
        column = self._settings.choices
        if not column:
            return []
        options = (prompt.truth or {}).get(column)
        if not isinstance(options, list | tuple):
            raise Refused(
                "no_truth", f"expected options in {column!r}, got {options!r:.80}"
            )
        return list(map(str, options))

    def _box(self, prompt: Prompt, text: str, right: Any) -> float:
        settings = self._settings
        true = box_of(right, settings.truth_box)
        if true is None:
            raise Refused(
                "no_truth", f"expected a box of four numbers, got {right!r:.80}"
            )
        answer = read_box(text, settings.answer_box, settings.answer_scale)
        if answer is None:
            return 0.0
        box, scale = answer
        overlap = iou(*self._in_one_scale(prompt, box, scale, true))
        if settings.threshold is None:
            return overlap
        return float(overlap >= settings.threshold)

    def _in_one_scale(
        self,
        prompt: Prompt,
        box: Box,
        scale: str,
        true: Box,
    ) -> tuple[Box, Box]:
        """Both boxes as shares of the picture, which is read only where its size is needed."""
        true_scale = self._settings.truth_scale
        if scale == true_scale:
            return box, true
        size = (1, 1)
        if "pixels" in (scale, true_scale):
            if len(prompt.images) != 1:
                raise Refused(
                    "image_count",
                    f"expected one picture to scale boxes by, got {len(prompt.images)}; set answer_scale and "
                    "truth_scale to one scale",
                )
            size = read(prompt.images[0]).size
        return to_unit(box, scale, size), to_unit(true, true_scale, size)


def _exact(
    prompt: Prompt,
    text: str,
    right: Any,
) -> float:
    expected = str(right).strip()
    return float(text.strip() == expected)


def _text(
    prompt: Prompt,
    text: str,
    right: Any,
) -> float:
    answer = normalized(final_answer(text))
    expected = normalized(str(right))
    return float(answer == expected)


def _letter_of(right: Any, options: Sequence[str]) -> str | None:
    """The letter of the right option, which rows give as a letter, an index from 0, or the option's text."""
    if isinstance(right, int):
        return chr(ord("A") + right) if 0 <= right < 26 else None
    return read_choice(str(right), options)
