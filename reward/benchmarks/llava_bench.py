"""LLaVA-Bench in the wild (Liu et al. 2023, arXiv 2304.08485): 60 open questions, graded by a language model.

File: `questions.jsonl`, lines `{question_id, image, category, text}`. Answers go out as `answers.jsonl`, lines
`{question_id, prompt, text, answer_id, model_id, metadata}`.
"""

from __future__ import annotations

from common.config.benchmarks import LlavaBenchmark
from common.evaluation import SuiteAnswers
from common.records import Dropped
from reward.benchmarks.base import Files, UngradedBenchmark, llava_lines
from reward.benchmarks.loading import (
    Item,
    Published,
    Row,
    collect,
    columns,
    find_file,
    read_rows,
)


class LlavaBench(UngradedBenchmark):
    """Answers and their length."""

    def __init__(self, settings: LlavaBenchmark) -> None:
        super().__init__(settings)
        self._instruction = settings.instruction

    def load(self) -> Published:
        """A question per line."""
        file = find_file(self.folder, ["questions.jsonl"], self.key)
        dropped: list[Dropped] = []
        rows = read_rows(file, dropped)
        return collect(rows, _item, file, self.key, dropped)

    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """One file; unanswered questions are left out."""
        lines = llava_lines(self.answered(answers), policy, self._instruction)
        return {"answers.jsonl": lines}


def _item(
    _: int,
    row: Row,
) -> Item:
    number, image, text, category = columns(
        row, "question_id", "image", "text", "category"
    )
    paths = (str(image), f"images/{image}")
    facts = {"question_id": number, "category": category}
    return Item(
        id=str(number),
        question=str(text),
        image=paths,
        group=str(image),
        facts=facts,
    )
