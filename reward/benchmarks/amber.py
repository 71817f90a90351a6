"""AMBER (Wang et al. 2023, arXiv 2311.07397): descriptions, and yes/no questions where "No" is the positive class.

Files: `query_all.json` (or another `query*.json`), `annotations.json`, `relation.json` and `safe_words.txt`, below one
folder. All answers go out as `amber_responses.json`, a list of `{id, response}` by id, where a response to a question
is `Yes` or `No`.

    CHAIR  mentions of things that are not there / all mentions
    Cover  things in the picture that are mentioned / all of them
    Hal    descriptions with a thing that is not there / all descriptions
    Cog    imagined things that are mentioned / things that people would imagine there

A description's words are looked up in the benchmark's own lists alone. The official script also asks a tagger which
words are nouns and word vectors which ones are close, so its figures of descriptions differ. Those of questions are the
same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from common.errors import Refused, UserError
from common.evaluation import MetricInfo, SuiteAnswers
from common.records import Dropped
from reward.benchmarks.base import (
    CAPTIONS,
    QUESTIONS,
    Benchmark,
    Figures,
    Files,
    json_text,
)
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
    read_whole,
)
from reward.benchmarks.plurals import plurals
from reward.suites.bootstrap import Columns, ratio
from reward.suites.pope import POPE_COUNTS, answer_counts, parse_strictly

_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")

_PARTS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "attribute",
    "discriminative-attribute-number": "attribute",
    "discriminative-attribute-action": "attribute",
}
"""Type of a question -> the part of the benchmark; all others are about relations."""

_GENERATIVE = partial(MetricInfo, tasks=(CAPTIONS,))
_DISCRIMINATIVE = partial(MetricInfo, tasks=(QUESTIONS,))
METRICS = {
    "chair": _GENERATIVE("AMBER CHAIR", "lower", "mentions not there, by word lists"),
    "cover": _GENERATIVE("AMBER Cover", "higher", "true things that are mentioned"),
    "hal": _GENERATIVE("AMBER Hal", "lower", "descriptions that make something up"),
    "cog": _GENERATIVE("AMBER Cog", "lower", "imagined things that are mentioned"),
    "accuracy": _DISCRIMINATIVE("AMBER accuracy", "higher", "yes/no questions"),
    "f1": _DISCRIMINATIVE("AMBER F1", "higher", '"No" is positive'),
}


class Amber(Benchmark):
    """The four figures of descriptions; accuracy, precision, recall and F1 of questions, whole and by part."""

    tasks = (CAPTIONS, QUESTIONS)
    selecting_metric = "f1"
    metrics = METRICS

    def load(self) -> Published:
        """Descriptions and questions in the order of the query file."""
        names = (
            "query_all.json",
            "query/query_all.json",
            "query*.json",
            "query/*.json",
        )
        queries = find_file(self.folder, names, self.key)
        annotations = self._annotations()
        dropped: list[Dropped] = []
        rows = read_rows(queries, dropped)
        item_of = partial(_item, annotations)
        return collect(rows, item_of, queries, self.key, dropped)

    def _annotations(self) -> dict[int, Row]:
        file = find_file(self.folder, ["annotations.json"], self.key)
        return {row["id"]: row for row in read_whole(file, list)}

    @cached_property
    def _lists(self) -> WordLists:
        relation = find_file(self.folder, ["relation.json"], self.key)
        safe = find_file(self.folder, ["safe_words.txt"], self.key)
        return WordLists(read_whole(relation, dict), _safe_words(safe))

    def count(
        self,
        facts: Facts,
        text: str,
    ) -> Counts:
        """See `Benchmark`."""
        if "label" in facts:
            return question_row(facts["label"], facts["part"], text)
        return description_row(self._lists, facts["things"], facts["imaginable"], text)

    def statistic(self, totals: Columns) -> Figures:
        """See `Benchmark`."""
        metrics: Figures = {}
        if "descriptions" in totals:
            metrics["chair"] = ratio(totals["made_up"], totals["mentions"])
            metrics["cover"] = ratio(totals["covered"], totals["true_things"])
            metrics["hal"] = ratio(totals["with_made_up"], totals["descriptions"])
            metrics["cog"] = ratio(totals["imagined"], totals["imaginable"])
        if "all/tp" in totals:
            metrics |= _of_questions(totals, "all")
        for part in ("existence", "attribute", "relation"):
            if f"{part}/tp" in totals:
                for name, value in _of_questions(totals, part).items():
                    metrics[f"{part}/{name}"] = value
        return metrics

    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """One file; items without an answer are left out, as the official script allows."""
        rows = []
        for answer in self.answered(answers):
            if answer.text is None:
                continue
            facts = answer.item.facts
            response = yes_or_no(answer.text) if "label" in facts else answer.text
            rows.append({"id": facts["id"], "response": response})
        rows.sort(key=lambda row: int(row["id"]))
        return {"amber_responses.json": json_text(rows)}


class WordLists:
    """The benchmark's lists: which words go with which thing, and which are always safe."""

    def __init__(
        self,
        association: Mapping[str, Sequence[str]],
        safe: Iterable[str],
    ) -> None:
        self.association = association
        self.safe = frozenset(safe)
        words = dict.fromkeys(association)
        for related in association.values():
            words.update(dict.fromkeys(related))
        self._singular: dict[str, str] = {}
        for word in words:
            for form in plurals(word):
                self._singular.setdefault(form, word)
        # A word of the lists is no plural of another.
        for word in words:
            self._singular[word] = word

    def of_things(self, things: Sequence[str]) -> Counts:
        """Word -> the number of the thing that it stands for; what is associated with a thing comes first."""
        numbers: dict[str, int] = {}
        for number, thing in enumerate(things):
            for word in self.association.get(thing, ()):
                numbers.setdefault(word, number)
        for number, thing in enumerate(things):
            numbers.setdefault(thing, number)
        return numbers

    def named(self, text: str) -> list[str]:
        """The words of the lists that a text has, in the singular, in order, repeats included."""
        words = [word.lower() for word in _WORD.findall(text)]
        return [self._singular[word] for word in words if word in self._singular]


def _item(
    annotations: Mapping[int, Row],
    _: int,
    row: Row,
) -> Item:
    number, image, query = columns(row, "id", "image", "query")
    annotation = annotations.get(number)
    if annotation is None:
        raise Refused("no_annotation", f"id {number}: expected an annotation, got none")
    kind, truth = columns(annotation, "type", "truth")
    facts: Facts = {"id": number}
    if kind == "generative":
        facts |= {"things": truth, "imaginable": annotation.get("hallu", [])}
        return Item(
            id=str(number),
            question=str(query),
            image=str(image),
            group=str(image),
            facts=facts,
            task=CAPTIONS,
        )
    if truth not in ("yes", "no"):
        raise Refused(
            "bad_row", f"id {number}: expected the truth yes or no, got {truth!r}"
        )
    facts |= {"label": truth, "part": _PARTS.get(kind, "relation")}
    return Item(
        id=str(number),
        question=str(query),
        image=str(image),
        group=str(image),
        facts=facts,
    )


def description_row(
    lists: WordLists,
    things: Sequence[str],
    imaginable: Sequence[str],
    text: str,
) -> Counts:
    """What a description adds to the totals.

    Args:
        things: what is in the picture.
        imaginable: what people would imagine there, and is not.
    """
    true_words = lists.of_things(things)
    imagined_words = lists.of_things(imaginable)
    num_mentions = num_made_up = 0
    covered: set[int] = set()
    imagined: set[int] = set()
    for word in lists.named(text):
        num_mentions += 1
        if word in lists.safe:
            continue
        if word in true_words:
            covered.add(true_words[word])
            continue
        num_made_up += 1
        if word in imagined_words:
            imagined.add(imagined_words[word])
    return {
        "descriptions": 1,
        "with_made_up": int(num_made_up > 0),
        "mentions": num_mentions,
        "made_up": num_made_up,
        "covered": len(covered),
        "true_things": len(things),
        "imagined": len(imagined),
        "imaginable": len(imaginable),
    }


def yes_or_no(text: str) -> str:
    """The response that the official script takes: "Yes" or "No"; an empty answer stays empty and is wrong."""
    if not text.strip():
        return ""
    return "Yes" if parse_strictly(text) == "yes" else "No"


_SWAPPED = {"tp": "tn", "fn": "fp", "tn": "tp", "fp": "fn"}
"""POPE's counts take yes as positive; here no is."""


def question_row(
    label: str,
    part: str,
    text: str,
) -> Counts:
    """What an answer adds to the totals, of all questions and of its part; an empty one is a wrong one."""
    response = yes_or_no(text)
    if response:
        counts = answer_counts(parse_strictly(text), "yes" if label == "yes" else "no")
    else:
        # Neither answer was given: a no that was missed, or a yes that was missed, which counts for accuracy alone.
        counts = dict.fromkeys(POPE_COUNTS, 0)
    row: dict[str, int] = {}
    for scope in ("all", part):
        row[f"{scope}/questions"] = 1
        row[f"{scope}/no_questions"] = int(label == "no")
        for name, swapped in _SWAPPED.items():
            row[f"{scope}/{swapped}"] = counts[name]
    row["unclear"] = int(not response)
    return row


def _of_questions(
    totals: Columns,
    scope: str,
) -> Figures:
    """Accuracy, and precision, recall and F1 of "No"."""
    tp = totals[f"{scope}/tp"]
    right = tp + totals[f"{scope}/tn"]
    said_no = tp + totals[f"{scope}/fp"]
    no_questions = totals[f"{scope}/no_questions"]
    return {
        "accuracy": ratio(right, totals[f"{scope}/questions"]),
        "precision": ratio(tp, said_no),
        "recall": ratio(tp, no_questions),
        "f1": ratio(2 * tp, said_no + no_questions),
    }


def _safe_words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: expected a list of words, got: {error}; fetch it again"
        ) from error
