"""MMHal-Bench (Sun et al. 2023, arXiv 2309.14525): 96 open questions, graded by a language model.

File: `response_template.json`, a list of entries with `image_src`, `question`, `gt_answer`, …. The same entries, in
their order, go out as `mmhal_responses.json` with `model_answer` filled in.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from common.evaluation import SuiteAnswers
from reward.benchmarks.base import Files, UngradedBenchmark, json_text
from reward.benchmarks.loading import (
    Item,
    Published,
    Row,
    collect,
    columns,
    find_file,
    read_whole,
)


class MmhalBench(UngradedBenchmark):
    """Answers and their length."""

    def load(self) -> Published:
        """A question per entry."""
        names = ("response_template.json", "*template*.json")
        file = find_file(self.folder, names, self.key)
        return collect(read_whole(file, list), _item, file, self.key)

    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """One file with all entries: the grader goes by their places. No answer is an empty one."""
        entries = []
        for answer in self.answered(answers):
            entry = {**answer.item.facts["entry"], "model_answer": answer.text or ""}
            entries.append(entry)
        return {"mmhal_responses.json": json_text(entries)}


def _item(
    number: int,
    row: Row,
) -> Item:
    image, question = columns(row, "image_src", "question")
    # The entries give addresses; the pictures have the same names.
    name = PurePosixPath(str(image)).name
    paths = (name, f"images/{name}")
    return Item(
        id=str(number),
        question=str(question),
        image=paths,
        group=str(number),
        facts={"entry": dict(row)},
    )
