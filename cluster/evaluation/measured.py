"""What is known of a measured policy, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter

from common.evaluation import Answers
from common.paths import replace_file
from common.protocols import Suite
from common.records import Verdict
from reward.suites.scorecard import Scorecard

Verdicts: TypeAlias = dict[str, dict[str, Verdict]]
"""Suite -> prompt id -> the judge's scores and notes for (the policy's answer, the start policy's)."""

_ANSWERS = TypeAdapter(Answers)
_VERDICTS: TypeAdapter[Verdicts] = TypeAdapter(Verdicts)


@dataclass(frozen=True, slots=True)
class Measured:
    """A policy's scorecard and the answers behind it, which serve as the baseline of the next policy.

    `verdicts` is empty for the start policy, which is compared with nothing.
    """

    card: Scorecard
    answers: Answers
    verdicts: Mapping[str, Mapping[str, Verdict]] = field(default_factory=dict)


def write_measured(path: Path, measured: Measured) -> None:
    """Keep a scorecard and its answers, so that a resume or another judge reads them instead of asking again."""
    verdicts = {suite: dict(of_suite) for suite, of_suite in measured.verdicts.items()}
    content = {
        "scorecard": measured.card.model_dump(mode="json"),
        "answers": _ANSWERS.dump_python(measured.answers, mode="json"),
        "verdicts": _VERDICTS.dump_python(verdicts, mode="json"),
    }
    # Replaced as a whole, so that a killed run never leaves half a file to resume from.
    replace_file(path, json.dumps(content))


def read_measured(path: Path) -> Measured:
    """What `write_measured` wrote."""
    content = json.loads(path.read_text())
    card = Scorecard.model_validate(content["scorecard"])
    # Not strict: JSON has lists where the records have tuples.
    answers = _ANSWERS.validate_python(content["answers"], strict=False)
    # Runs of before kept none.
    plain_verdicts = content.get("verdicts", {})
    verdicts = _VERDICTS.validate_python(plain_verdicts, strict=False)
    return Measured(card, answers, verdicts)


def write_answer_files(
    folder: Path,
    suites: Sequence[Suite],
    answers: Answers,
    policy: str,
) -> None:
    """The files that official evaluators read, as FOLDER/SUITE/NAME; `policy` is what they call it."""
    for suite in suites:
        files = suite.answer_files(answers.suites[suite.name], policy)
        for name, content in files.items():
            replace_file(folder / suite.name / name, content)
