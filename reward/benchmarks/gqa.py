"""GQA (Hudson and Manning 2019, arXiv 1902.09506): short answers, exact match.

File: `testdev_balanced_questions.json` (or another `*_questions.json`), an object of questions by id with `question`,
`answer` and `imageId`. Answers go out as `testdev_balanced_predictions.json`, a list of `{questionId, prediction}`, in
small letters and without a full stop, as LLaVA gives them to the official `eval.py`.
"""

from __future__ import annotations

from common.evaluation import MetricInfo, SuiteAnswers
from reward.benchmarks.base import Benchmark, Figures, Files, json_text
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
from reward.suites.bootstrap import Columns, ratio

_SUFFIX = "_questions.json"
METRICS = {"accuracy": MetricInfo("GQA", "higher", "exact match")}


class Gqa(Benchmark):
    """Share of answers that are the expected word."""

    selecting_metric = "accuracy"
    metrics = METRICS

    def load(self) -> Published:
        """A question per entry."""
        names = (f"testdev_balanced{_SUFFIX}", f"*{_SUFFIX}")
        file = find_file(self.folder, names, self.key)
        # The tier names the file of predictions.
        tier = file.name.removesuffix(_SUFFIX)
        rows = []
        for number, entry in read_whole(file, dict).items():
            rows.append({"id": number, "entry": entry, "tier": tier})
        return collect(rows, _item, file, self.key)

    def count(
        self,
        facts: Facts,
        text: str,
    ) -> Counts:
        """See `Benchmark`."""
        return {"questions": 1, "right": int(prediction(text) == facts["answer"])}

    def statistic(self, totals: Columns) -> Figures:
        """See `Benchmark`."""
        return {"accuracy": ratio(totals["right"], totals["questions"])}

    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """One file; unanswered questions are left out."""
        rows = []
        tier = ""
        for answer in self.answered(answers):
            tier = answer.item.facts["tier"]
            if answer.text is not None:
                number = answer.item.facts["question_id"]
                row = {"questionId": number, "prediction": prediction(answer.text)}
                rows.append(row)
        return {f"{tier}_predictions.json": json_text(rows)}


def prediction(text: str) -> str:
    """An answer as it is compared: small letters, without the full stop at its end."""
    return text.strip().rstrip(".").lower()


def _item(
    _: int,
    row: Row,
) -> Item:
    question, answer, image_id = columns(row["entry"], "question", "answer", "imageId")
    number = row["id"]
    facts = {"question_id": number, "answer": str(answer), "tier": row["tier"]}
    name = f"{image_id}.jpg"
    return Item(
        id=number,
        question=str(question),
        image=(name, f"images/{name}"),
        group=str(image_id),
        facts=facts,
    )
