"""HallusionBench (Guan et al. 2023, arXiv 2310.14566): yes/no questions, about figures, changed figures and none.

File: `HallusionBench.json`, a list of rows; a row's figure is `CATEGORY/SUBCATEGORY/SET_FIGURE.png` below the pictures,
a row of `visual_input` 0 has none. The same rows go out as `HallusionBench_result.json` with `model_prediction`.

    aAcc  questions answered right                fAcc  figures of which all questions are
    qAcc  questions that are right on every figure of their set

As in the official script, a question without a figure may also be left open, and is no figure. That script has a
language model read the answers; here they are read by their words, so answers that say neither yes nor no are unclear.
"""

from __future__ import annotations

import re

from common.errors import Refused
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
from reward.suites.pope import parse_strictly

_YES = re.compile(r"\byes\b", re.IGNORECASE)

METRICS = {
    "a_acc": MetricInfo("aAcc", "higher", "questions answered right"),
    "f_acc": MetricInfo("fAcc", "higher", "figures with all questions right"),
    "q_acc": MetricInfo("qAcc", "higher", "questions right on all their figures"),
}


class HallusionBench(Benchmark):
    """aAcc, fAcc and qAcc. Sets of figures are redrawn."""

    selecting_metric = "a_acc"
    unit = "sets"
    metrics = METRICS

    def load(self) -> Published:
        """A question per row."""
        file = find_file(self.folder, ["HallusionBench.json"], self.key)
        return collect(read_whole(file, list), _item, file, self.key)

    def count(
        self,
        facts: Facts,
        text: str,
    ) -> Counts:
        """See `Benchmark`. `figure/N/…` and `question/N/…` are what `count_group` reads."""
        said = yes_no_or_unclear(text)
        right = int(said == facts["label"])
        if facts["may_be_open"] and said == "":
            right = 1
        row = {
            "questions": 1,
            "right": right,
            "unclear": int(said == ""),
            f"question/{facts['question_id']}/asked": 1,
            f"question/{facts['question_id']}/right": right,
        }
        if not facts["may_be_open"]:
            row[f"figure/{facts['figure_id']}/asked"] = 1
            row[f"figure/{facts['figure_id']}/right"] = right
        return row

    def count_group(self, counts: Counts) -> Counts:
        """See `Benchmark`: the set's figures and questions, and those that are right throughout."""
        row = {"figures": 0, "right_figures": 0, "pairs": 0, "right_pairs": 0}
        for name, asked in counts.items():
            unit, _, rest = name.partition("/")
            number, _, count = rest.rpartition("/")
            if count != "asked":
                continue
            right = int(counts[f"{unit}/{number}/right"] == asked)
            plural = "figures" if unit == "figure" else "pairs"
            row[plural] += 1
            row[f"right_{plural}"] += right
        return row

    def statistic(self, totals: Columns) -> Figures:
        """See `Benchmark`."""
        return {
            "a_acc": ratio(totals["right"], totals["questions"]),
            "f_acc": ratio(totals["right_figures"], totals["figures"]),
            "q_acc": ratio(totals["right_pairs"], totals["pairs"]),
        }

    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """One file with all rows; the official script stops at a row without a prediction, so none is an empty one."""
        rows = []
        for answer in self.answered(answers):
            row = {**answer.item.facts["row"], "model_prediction": answer.text or ""}
            rows.append(row)
        return {"HallusionBench_result.json": json_text(rows)}


def yes_no_or_unclear(text: str) -> str:
    """ "yes" or "no" as the first sentence says, "" when it says neither."""
    if parse_strictly(text) == "no":
        return "no"
    return "yes" if _YES.search(text.strip().split(".")[0]) else ""


def _item(
    number: int,
    row: Row,
) -> Item:
    category, subcategory, set_id, figure_id, question_id, question, label = columns(
        row,
        "category",
        "subcategory",
        "set_id",
        "figure_id",
        "question_id",
        "question",
        "gt_answer",
    )
    if str(label) not in ("0", "1"):
        raise Refused(
            "bad_row", f"row {number}: expected gt_answer 0 or 1, got {label!r}"
        )
    image = None
    if str(row.get("visual_input")) != "0":
        path = f"{category}/{subcategory}/{set_id}_{figure_id}.png"
        image = (path, f"hallusion_bench/{path}")
    facts = {
        "row": dict(row),
        "label": "yes" if str(label) == "1" else "no",
        "figure_id": str(figure_id),
        "question_id": str(question_id),
        # Without a figure, not to know is right.
        "may_be_open": category == "VS" and str(figure_id) == "0",
    }
    group = f"{category}/{subcategory}/{set_id}"
    return Item(
        id=str(number),
        question=str(question),
        image=image,
        group=group,
        facts=facts,
    )
