"""TextVQA (Singh et al. 2019, arXiv 1904.08920): questions about text in pictures, ten human answers each.

File: `TextVQA_0.5.1_val.json` with its rows under `data`. Answers go out as `answers.jsonl` for LLaVA's script, which
finds a row by picture and question, and as `textvqa_submission.json`, a list of `{question_id, answer}`.
"""

from __future__ import annotations

from common.config.benchmarks import TextVqaBenchmark
from common.errors import Refused
from common.evaluation import MetricInfo, SuiteAnswers
from reward.benchmarks.base import Benchmark, Figures, Files, json_text, llava_lines
from reward.benchmarks.loading import (
    Counts,
    Facts,
    Item,
    Published,
    Row,
    collect,
    columns,
    find_file,
    read_whole,
)
from reward.benchmarks.vqa_text import THIRTIETHS, agreement
from reward.suites.bootstrap import Columns, ratio

NUM_PEOPLE = 10
METRICS = {"accuracy": MetricInfo("TextVQA", "higher", "VQA accuracy")}


class TextVqa(Benchmark):
    """VQA accuracy."""

    selecting_metric = "accuracy"
    metrics = METRICS

    def __init__(self, settings: TextVqaBenchmark) -> None:
        super().__init__(settings)
        self._instruction = settings.instruction

    def load(self) -> Published:
        """A question per row."""
        file = find_file(self.folder, ["TextVQA*_val.json", "TextVQA*.json"], self.key)
        rows = read_whole(file, dict).get("data")
        if not isinstance(rows, list):
            rows = []
        return collect(rows, _item, file, self.key)

    def count(
        self,
        facts: Facts,
        text: str,
    ) -> Counts:
        """See `Benchmark`; counted in thirtieths, since counts are whole numbers."""
        return {
            "thirtieths": agreement(text, facts["answers"]),
            "whole": THIRTIETHS,
        }

    def statistic(self, totals: Columns) -> Figures:
        """See `Benchmark`."""
        return {"accuracy": ratio(totals["thirtieths"], totals["whole"])}

    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """Two files with the same answers; unanswered questions are left out."""
        answered = self.answered(answers)
        submission = []
        for answer in answered:
            if answer.text is not None:
                number = answer.item.facts["submitted_id"]
                submission.append({"question_id": number, "answer": answer.text})
        return {
            "answers.jsonl": llava_lines(answered, policy, self._instruction),
            "textvqa_submission.json": json_text(submission),
        }


def _item(
    _: int,
    row: Row,
) -> Item:
    number, image_id, question, answers = columns(
        row, "question_id", "image_id", "question", "answers"
    )
    if not isinstance(answers, list) or len(answers) != NUM_PEOPLE:
        raise Refused(
            "bad_row",
            f"question {number}: expected {NUM_PEOPLE} answers, got another list",
        )
    # LLaVA's files call the picture's id the question's.
    facts = {
        "question_id": image_id,
        "submitted_id": number,
        "answers": [str(answer) for answer in answers],
    }
    name = f"{image_id}.jpg"
    paths = (name, f"train_images/{name}", f"images/{name}")
    return Item(
        id=str(number),
        question=str(question),
        image=paths,
        group=str(image_id),
        facts=facts,
    )
