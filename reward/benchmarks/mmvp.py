"""MMVP (Tong et al. 2024, arXiv 2401.06209): two options about each of two pictures that CLIP takes for the same.

Files: `Questions.csv` with `Question`, `Options` ("(a) Open (b) Closed") and `Correct Answer` ("(a)"); picture N is
`MMVP Images/N.jpg`, rows 1 and 2 are a pair, 3 and 4, …. A pair is right when both answers are. Answers go out as
`answer.jsonl`, lines `{question_id, prompt, answer, response, answer_id, model_id}`, for the official grader. That is a
language model; here the option is read from the answer's words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from common.errors import Refused
from common.evaluation import MetricInfo, SuiteAnswers
from common.records import Dropped
from reward.benchmarks.base import Benchmark, Figures, Files, json_lines
from reward.benchmarks.loading import (
    Counts,
    Facts,
    Item,
    Published,
    Row,
    collect,
    columns,
    find_file,
    read_table,
)
from reward.suites.bootstrap import Columns, ratio

_OPTION = re.compile(r"\(([a-z])\)\s*([^(]*)", re.IGNORECASE)
_MARKED = re.compile(r"\(([a-z])\)|^\W*([a-z])(?:[).:,]|\W*$)", re.IGNORECASE)

METRICS = {
    "pair_accuracy": MetricInfo("MMVP", "higher", "pairs with both answers right"),
    "accuracy": MetricInfo("MMVP questions", "higher", "questions answered right"),
}


class Mmvp(Benchmark):
    """Accuracy of pairs, and of single questions."""

    selecting_metric = "pair_accuracy"
    unit = "pairs"
    metrics = METRICS

    def load(self) -> Published:
        """A question per row; a row that cannot be used takes its pair along."""
        file = find_file(self.folder, ["Questions.csv"], self.key)
        published = collect(read_table(file), _item, file, self.key)
        sizes = Counter(item.group for item in published.items)
        whole: list[Item] = []
        for item in published.items:
            if sizes[item.group] == 2:
                whole.append(item)
                continue
            detail = f"question {item.id}: expected both of its pair, got one"
            published.dropped.append(Dropped(item.id, "half_pair", detail))
        published.items = whole
        return published

    def count(
        self,
        facts: Facts,
        text: str,
    ) -> Counts:
        """See `Benchmark`."""
        chosen = chosen_option(text, facts["options"])
        return {
            "questions": 1,
            "right": int(chosen == facts["label"]),
            "unclear": int(chosen == ""),
        }

    def count_group(self, counts: Counts) -> Counts:
        """See `Benchmark`: a pair that lost an answer is none."""
        is_pair = counts.get("questions") == 2
        is_right = is_pair and counts["right"] == 2
        return {"pairs": int(is_pair), "right_pairs": int(is_right)}

    def statistic(self, totals: Columns) -> Figures:
        """See `Benchmark`."""
        return {
            "pair_accuracy": ratio(totals["right_pairs"], totals["pairs"]),
            "accuracy": ratio(totals["right"], totals["questions"]),
        }

    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """One file with all questions: the grader takes two lines for a pair. No answer is an empty one."""
        rows = []
        for answer in self.answered(answers):
            facts = answer.item.facts
            rows.append(
                {
                    "question_id": facts["question_id"],
                    "prompt": answer.item.question,
                    "answer": facts["answer"],
                    "response": answer.text or "",
                    "answer_id": f"{policy}/{answer.item.id}",
                    "model_id": policy,
                }
            )
        return {"answer.jsonl": json_lines(rows)}


def chosen_option(
    text: str,
    options: Mapping[str, str],
) -> str:
    """The letter of the option that an answer chooses, "" for none or for several.

    A letter in brackets or before a mark decides, or one alone; else the only option whose words the answer has.

    Args:
        options: letter -> words, all in small letters.
    """
    letters: set[str] = set()
    for in_brackets, at_start in _MARKED.findall(text):
        letter = (in_brackets or at_start).lower()
        if letter in options:
            letters.add(letter)
    if not letters:
        for letter, words in options.items():
            if words and re.search(rf"\b{re.escape(words)}\b", text.lower()):
                letters.add(letter)
    return letters.pop() if len(letters) == 1 else ""


def _pair_of(number: int) -> str:
    return str((number + 1) // 2)


def _item(
    number: int,
    row: Row,
) -> Item:
    question, options, answer = columns(row, "Question", "Options", "Correct Answer")
    by_letter: dict[str, str] = {}
    for letter, words in _OPTION.findall(options):
        by_letter[letter.lower()] = words.strip().lower()
    label = str(answer).strip("() ").lower()
    if label not in by_letter:
        raise Refused(
            "bad_row",
            f"row {number}: expected a correct answer among {options!r}, got {answer!r}",
        )
    facts = {
        "question_id": number,
        "answer": answer,
        "options": by_letter,
        "label": label,
    }
    # The first name is the published folder's, the second the one in the authors' script.
    paths = (f"{number}.jpg", f"MMVP Images/{number}.jpg", f"MMVP Imgaes/{number}.jpg")
    return Item(
        id=str(number),
        question=f"{question} {options}",
        image=paths,
        group=_pair_of(number),
        facts=facts,
    )
