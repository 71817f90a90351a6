"""What all benchmarks share: a split by pictures, prompts, counting with intervals, and the answer files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias

from common.config.benchmarks import Benchmark as Settings
from common.data.images import ImageStore
from common.errors import Refused, UserError
from common.evaluation import (
    Comparison,
    Measurement,
    MetricInfo,
    Split,
    SuiteAnswers,
    TaskPrompts,
)
from common.reading.image_intake import ImageIntake
from common.records import (
    Dropped,
    Message,
    Part,
    Prompt,
    RolloutGroup,
)
from common.row_faults import drop_report
from common.seeding import derive_seed
from reward.benchmarks.loading import Counts, Facts, Item, Published, folder_of
from reward.suites.base import BaseSuite
from reward.suites.bootstrap import (
    Array,
    Columns,
    columns_of,
    estimate,
    intervals_of,
    ratio,
    resample,
)
from reward.suites.scorecard import described
from reward.suites.wins import tie_with_itself, win_counts, win_of, win_rate

QUESTIONS, CAPTIONS = "questions", "captions"

Figures: TypeAlias = dict[str, Array]
"""Metric -> its value for every resampling."""
Files: TypeAlias = dict[str, str]
"""Name -> content."""

LENGTH = {"mean_length": MetricInfo("length", "", "words per answer", digits=1)}
WIN_RATE = {
    "win_rate": MetricInfo(
        "win rate", "higher", "against the start policy", against_start=True
    )
}


@dataclass(frozen=True, slots=True)
class Answered:
    """An item of a split and the policy's answer; None when there is none."""

    item: Item
    text: str | None


class Benchmark(BaseSuite, ABC):
    """A `common.protocols.Suite` of a published benchmark.

    A benchmark writes `load`, `count`, `statistic` and `answer_files`. Its figures come from columns of counts with
    one row per group of items, see `reward.suites.bootstrap`; a column that no answer has added to is not there.
    """

    tasks: Sequence[str] = (QUESTIONS,)
    selecting_metric = ""
    """In 0-1, higher is better; "" for a benchmark that measures nothing itself."""
    metrics: dict[str, MetricInfo] = {}  # noqa: RUF012 - never changed in place

    def __init__(self, settings: Settings) -> None:
        self.name = settings.name
        self.key = f"evaluation.suites {settings.name}"
        self._settings = settings
        self.shown_tasks = self.tasks
        self.compared_tasks = self.tasks if settings.compare else ()
        self.metrics = {**self.metrics, **LENGTH}
        if settings.compare:
            self.metrics |= WIN_RATE
        self.folder = folder_of(settings.path, f"{self.key}: path")
        self._published: Published | None = None

    @abstractmethod
    def load(self) -> Published:
        """All items in the order of the published files (UserError when the files cannot be used)."""

    @abstractmethod
    def count(
        self,
        facts: Facts,
        text: str,
    ) -> Counts:
        """What an answer adds to the counts of its group."""

    def count_group(self, counts: Counts) -> Counts:
        """What a whole group adds, such as a pair of which both answers are right; `counts` are its answers'."""
        return {}

    @abstractmethod
    def statistic(self, totals: Columns) -> Figures:
        """Metrics of summed counts; what `totals` has no column for is left out."""

    @abstractmethod
    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """The files that official evaluators read: name -> content.

        Args:
            policy: what they call the model.
        """

    # The rest of `common.protocols.Suite`, the same for all.

    def prompts(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> TaskPrompts:
        """See `common.protocols.Suite`. Items without their picture are dropped; a benchmark without any is refused."""
        images = folder_of(
            self._settings.images or self._settings.path, f"{self.key}: images"
        )
        intake = ImageIntake(images, store)
        tasks: dict[str, list[Prompt]] = {task: [] for task in self.tasks}
        lost: list[Dropped] = []
        items = self.items(split)
        for item in items:
            try:
                prompt = self._prompt(item, split, intake)
            except Refused as error:
                lost.append(Dropped(self._id(item), error.reason, str(error)))
                continue
            tasks[item.task].append(prompt)
        if items and len(lost) == len(items):
            raise UserError(
                f"{self.key}: expected pictures below {images}, got none of {len(items)} items; dropped "
                f"{drop_report(lost)}; set its images to their folder"
            )
        dropped += self._published_rows().dropped
        dropped += lost
        return tasks

    def items(self, split: Split) -> list[Item]:
        """The items of a split in published order: whole groups, so that no picture is in both splits."""
        items = self._published_rows().items
        groups = list(dict.fromkeys(item.group for item in items))
        limited = groups[: self._settings.limit]
        chosen = _groups_of(split, limited, self._settings.validation)
        return [item for item in items if item.group in chosen]

    def _published_rows(self) -> Published:
        if self._published is None:
            self._published = self.load()
        return self._published

    def _id(self, item: Item) -> str:
        return f"{self.name}/{item.id}"

    def _prompt(
        self,
        item: Item,
        split: Split,
        intake: ImageIntake,
    ) -> Prompt:
        question = item.question
        if self._settings.instruction:
            question = f"{question}\n{self._settings.instruction}"
        images = () if item.image is None else (intake.add(item.image),)
        parts = (*(Part("image") for _ in images), Part("text", question))
        truth = {**item.facts, "group": item.group, "split": split}
        return Prompt(self._id(item), (Message("user", parts),), images, truth=truth)

    def measure(
        self,
        answers: SuiteAnswers,
        comparison: Comparison | None,
        num_samples: int,
    ) -> Measurement:
        """See `common.protocols.Suite`. All answers about a picture are redrawn together."""
        rows = self._rows(answers, comparison)
        # In the order in which answers added to them.
        names: dict[str, None] = {}
        for row in rows.values():
            names.update(dict.fromkeys(row))
        values: dict[str, float] = {}
        resampled: Figures = {}
        if names:
            columns = columns_of(rows.values(), names)
            values = estimate(columns, self._statistic)
            seed = derive_seed("scorecard", self.name)
            resampled = resample(columns, self._statistic, num_samples, seed)
        if comparison is None and self.compared_tasks:
            tie_with_itself(values, resampled, num_samples)
        counts = _num_answers(rows.values())
        return Measurement(
            metrics=described(values, intervals_of(resampled), self.metrics),
            counts=counts,
            dropped={},
            summary=(
                f"{counts['num_answers']} answers about {len(rows)} {self.unit}; 95 % bootstrap intervals over "
                f"{self.unit}"
            ),
            resampled=resampled,
        )

    def _rows(
        self,
        answers: SuiteAnswers,
        comparison: Comparison | None,
    ) -> dict[str, Counter[str]]:
        """Counts by group of items."""
        verdicts = {} if comparison is None else comparison.verdicts
        rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for group in _groups(answers):
            facts = dict(group.prompt.truth or {})
            completion = group.completions[0]
            row = rows[facts["group"]]
            row.update(self.count(facts, completion.text))
            row.update(
                answers=1,
                truncated=int(completion.finish_reason == "length"),
                words=len(completion.text.split()),
            )
            if group.prompt.id in verdicts:
                win = win_of(verdicts[group.prompt.id])
                row.update(win_counts(win))
        for row in rows.values():
            row.update(self.count_group(row))
        return dict(rows)

    def _statistic(self, totals: Columns) -> Figures:
        metrics = self.statistic(totals)
        if "compared" in totals:
            metrics |= win_rate(totals)
        metrics["mean_length"] = ratio(totals["words"], totals["answers"])
        return metrics

    def answered(self, answers: SuiteAnswers) -> list[Answered]:
        """Every item of the answers' split in published order, those without an answer included."""
        texts: dict[str, str] = {}
        for group in _groups(answers):
            texts[group.prompt.id] = group.completions[0].text
        items = self.items(_split_of(answers))
        return [Answered(item, texts.get(self._id(item))) for item in items]


def _groups_of(
    split: Split,
    groups: Sequence[str],
    share: float,
) -> set[str]:
    """The groups of a split: validation has those of the lowest hash."""
    shuffled = sorted(groups, key=lambda group: sha256(group.encode()).digest())
    num_validation = round(share * len(shuffled))
    if split == "validation":
        return set(shuffled[:num_validation])
    return set(shuffled[num_validation:])


def _groups(answers: SuiteAnswers) -> list[RolloutGroup]:
    return [group for groups in answers.tasks.values() for group in groups]


def _split_of(answers: SuiteAnswers) -> Split:
    """The split that answers belong to."""
    for group in _groups(answers):
        truth = group.prompt.truth or {}
        return "validation" if truth.get("split") == "validation" else "test"
    return "test"


def _num_answers(rows: Iterable[Mapping[str, int]]) -> Counts:
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row)
    return {
        "num_answers": totals["answers"],
        "num_truncated": totals["truncated"],
        "num_unclear": totals["unclear"],
        "num_compared": totals["compared"],
    }


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def json_text(content: Any) -> str:
    """Indented JSON, as people read it too."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def llava_lines(
    answered: Sequence[Answered],
    policy: str,
    instruction: str,
) -> str:
    """Answers in the form of LLaVA's evaluation scripts. Items without an answer are left out."""
    rows = []
    for answer in answered:
        if answer.text is None:
            continue
        question = answer.item.question
        rows.append(
            {
                "question_id": answer.item.facts["question_id"],
                "prompt": f"{question}\n{instruction}" if instruction else question,
                "text": answer.text,
                "answer_id": f"{policy}/{answer.item.id}",
                "model_id": policy,
                "metadata": {},
            }
        )
    return json_lines(rows)


class UngradedBenchmark(Benchmark):
    """Answers and their length; a grade needs another model."""

    def count(self, facts: Facts, text: str) -> Counts:
        """See `Benchmark`: nothing but the answer's length."""
        return {}

    def statistic(self, totals: Columns) -> Figures:
        """See `Benchmark`."""
        return {}
