"""POPE (Li et al. 2023, arXiv 2305.10355): is this object in the picture? "Yes" is the positive class.

Files: `coco_pope_random.json`, `coco_pope_popular.json`, `coco_pope_adversarial.json` (or of another data set), JSON
lines `{question_id, image, text, label}`. Answers go out as `SPLIT_answers.jsonl`, lines `{question, answer}`, beside
the questions that have one, in the same order: the official `evaluate.py` pairs the two files by line.
"""

from __future__ import annotations

from pathlib import Path

from common.errors import Refused
from common.evaluation import SuiteAnswers
from common.records import Dropped
from reward.benchmarks.base import Answered, Benchmark, Figures, Files, json_lines
from reward.benchmarks.loading import (
    Counts,
    Facts,
    Item,
    Published,
    Row,
    collect,
    columns,
    find_file,
    read_rows,
)
from reward.suites.bootstrap import Columns
from reward.suites.pope import (
    POPE_COUNTS,
    answer_counts,
    parse_answer,
    parse_strictly,
    pope_by_split,
    pope_infos,
)

PATTERN = "*pope_*.json"


class Pope(Benchmark):
    """Accuracy, precision, recall, F1 and yes ratio by split, as the official script reads answers and strictly."""

    selecting_metric = "pope_f1"
    metrics = pope_infos()

    def load(self) -> Published:
        """The questions of all splits."""
        find_file(self.folder, [PATTERN], self.key)
        dropped: list[Dropped] = []
        rows = []
        for file in sorted(self.folder.glob(PATTERN)):
            for row in read_rows(file, dropped):
                rows.append({"file": file.name, "row": row})
        return collect(rows, _item, self.folder / PATTERN, self.key, dropped)

    def count(
        self,
        facts: Facts,
        text: str,
    ) -> Counts:
        """See `Benchmark`: the columns that `pope_by_split` reads."""
        split = facts["pope_split"]
        label = facts["label"]
        official = answer_counts(parse_answer(text), label)
        strict = answer_counts(parse_strictly(text), label)
        counts: dict[str, int] = {}
        for name in POPE_COUNTS:
            counts[f"{split}/{name}"] = official[name]
            counts[f"{split}/strict_{name}"] = strict[name]
        return counts

    def statistic(self, totals: Columns) -> Figures:
        """See `Benchmark`."""
        splits = []
        for name in totals:
            split, _, count = name.rpartition("/")
            if count == "tp":
                splits.append(split)
        return pope_by_split(totals, sorted(splits))

    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """Two files per split: answers, and the questions that they answer."""
        by_file: dict[str, list[Answered]] = {}
        for answer in self.answered(answers):
            # A line without an answer would be read as yes.
            if answer.text is not None:
                by_file.setdefault(answer.item.facts["file"], []).append(answer)
        files: dict[str, str] = {}
        for name, answered in by_file.items():
            rows = [
                {"question": answer.item.question, "answer": answer.text}
                for answer in answered
            ]
            questions = [answer.item.facts["row"] for answer in answered]
            files[f"{Path(name).stem}_answers.jsonl"] = json_lines(rows)
            files[name] = json_lines(questions)
        return files


def _item(
    _: int,
    row: Row,
) -> Item:
    question_id, image, text, label = columns(
        row["row"], "question_id", "image", "text", "label"
    )
    file = row["file"]
    if label not in ("yes", "no"):
        raise Refused("bad_row", f"{file}: expected the label yes or no, got {label!r}")
    split = Path(file).stem.rpartition("pope_")[2]
    facts = {**row, "pope_split": split, "label": label}
    return Item(
        id=f"{split}/{question_id}",
        question=str(text),
        image=str(image),
        group=str(image),
        facts=facts,
    )
