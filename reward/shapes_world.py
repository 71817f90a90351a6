"""The shapes world's plug-in of the reward room: the only file here that knows `common.shapes`.

`ShapesSuite` asks for captions, measured by CHAIR and by the judge against the start policy, and POPE's yes/no
questions about the same scenes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial

import numpy as np

from common import config
from common.config.povid import ErrorKind
from common.data.images import ImageStore
from common.evaluation import (
    Comparison,
    LegendEntry,
    Measurement,
    MetricInfo,
    ShownAnswer,
    Split,
    SuiteAnswers,
    TaskPrompts,
)
from common.protocols import Eye
from common.records import (
    Dropped,
    PreferencePair,
    Prompt,
    Response,
    RolloutGroup,
)
from common.seeding import derive_seed
from common.shapes.corrupter import corrupt
from common.shapes.faults import faults_of
from common.shapes.language import parse_caption
from common.shapes.marks import marked_caption
from common.shapes.prompts import caption_prompts, question_prompts
from common.shapes.questions import POPE_SPLITS, answer_text, ask
from common.shapes.truth import MissingTruth, answer_of, group_of, scene_of
from reward.judges.claims import ClaimLanguage, ClaimsJudge
from reward.judges.rules import RulesJudge
from reward.judges.splitting import RuleSplitter
from reward.suites.base import BaseSuite
from reward.suites.bootstrap import (
    Array,
    Columns,
    Statistic,
    columns_of,
    estimate,
    intervals_of,
    resample,
)
from reward.suites.chair import CHAIR_COUNTS, caption_counts, chair
from reward.suites.pope import (
    POPE_COUNTS,
    answer_counts,
    parse_answer,
    parse_strictly,
    pope_by_split,
)
from reward.suites.scorecard import described
from reward.suites.wins import (
    START_WIN_RATE,
    WIN_COUNTS,
    win_counts,
    win_of,
    win_rate,
)

CAPTIONS, QUESTIONS = "captions", "questions"

SEED = 0
"""The scenes of an evaluation are the same in every run, whatever its seed."""

METRICS = {
    "chair_s": MetricInfo(
        "CHAIR_s", "lower", "captions that make something up", tasks=(CAPTIONS,)
    ),
    "chair_i": MetricInfo(
        "CHAIR_i", "lower", "mentions of things that are not there", tasks=(CAPTIONS,)
    ),
    "recall": MetricInfo(
        "recall", "higher", "true objects that are named", tasks=(CAPTIONS,)
    ),
    "pope_accuracy": MetricInfo(
        "POPE accuracy", "higher", "mean of three splits", tasks=(QUESTIONS,)
    ),
    "pope_f1": MetricInfo(
        "POPE F1", "higher", "mean of three splits", tasks=(QUESTIONS,)
    ),
    "pope_yes_ratio": MetricInfo(
        "POPE yes ratio", "", "0.5 is balanced", tasks=(QUESTIONS,)
    ),
    "win_rate": MetricInfo(
        "win rate",
        "higher",
        "against the start policy",
        tasks=(CAPTIONS,),
        against_start=True,
    ),
    "mean_length": MetricInfo(
        "length", "", "words per caption", digits=1, tasks=(CAPTIONS,)
    ),
    "selection": MetricInfo("", "higher", "F1 of naming objects", tasks=(CAPTIONS,)),
}
"""What tables show, in this order, and what picks a checkpoint."""

ERROR_KINDS: tuple[ErrorKind, ...] = ("entity", "attribute", "relation")
"""Errors that a caption can be given, taken in turn."""


def rules_judge(costs: config.RulesJudge) -> RulesJudge:
    """Holds what a caption or an answer says against what the scene holds."""
    return RulesJudge(partial(faults_of, costs=costs))


def policy_judge(eye: Eye) -> ClaimsJudge:
    """Asks a vision-language model about every object that a caption claims; colours and places are not checked."""
    language = ClaimLanguage(
        question_of=lambda prompt, shape: ask(shape),
        yes=answer_text("yes"),
        no=answer_text("no"),
        nothing_claimed="names no object",
    )
    return ClaimsJudge("policy", eye, RuleSplitter(_claimed_shapes), language)


def _claimed_shapes(text: str) -> list[str]:
    return [mention.shape for mention in parse_caption(text)]


class ShapesSuite(BaseSuite):
    """A `common.protocols.Suite` of rendered scenes whose content is known."""

    metrics = METRICS
    selecting_metric = "selection"
    compared_tasks = (CAPTIONS,)
    shown_tasks = (CAPTIONS,)
    unit = "scenes"
    legend = (
        LegendEntry("made-up", "red", "not in the picture, or said twice"),
        LegendEntry("wrong", "orange", "wrong colour or place"),
        LegendEntry("note", "grey", "never mentioned"),
    )

    def __init__(self, settings: config.ShapesSuite) -> None:
        self.name = settings.name
        # Both splits are disjoint from the training scenes, see common/shapes/scenes.py.
        self._num_scenes: dict[Split, int] = {
            "validation": settings.validation_scenes,
            "test": settings.test_scenes,
        }
        self._questions_per_scene = settings.questions_per_scene

    def prompts(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> dict[str, list[Prompt]]:
        """A caption of every scene, and questions about the same scenes."""
        num_scenes = self._num_scenes[split]
        questions = question_prompts(
            split,
            num_scenes,
            SEED,
            store,
            self._questions_per_scene,
        )
        captions = caption_prompts(split, num_scenes, SEED, store)
        return {CAPTIONS: captions, QUESTIONS: questions}

    def measure(
        self,
        answers: SuiteAnswers,
        comparison: Comparison | None,
        num_samples: int,
    ) -> Measurement:
        """CHAIR, POPE and win rate; see `common.protocols.Suite`.

        The table behind them has one row per scene: a caption, its questions and its comparison with the start policy
        are redrawn together. Two policies that answer the same scenes are measured with the same draws.
        """
        rows, dropped = _count(answers)
        if comparison is not None:
            for prompt_id, verdict in comparison.verdicts.items():
                # A caption prompt has the id of its scene.
                scene_row = rows[prompt_id]
                scene_row.update(win_counts(win_of(verdict)))
        columns = columns_of(rows.values(), _COLUMN_NAMES)
        totals: dict[str, int] = {}
        for name, column in columns.items():
            totals[name] = int(column.sum())
        statistic = _statistic(totals)
        values = estimate(columns, statistic)
        seed = derive_seed("scorecard")
        resampled = resample(columns, statistic, num_samples, seed)
        if comparison is None:
            values["win_rate"] = START_WIN_RATE
            resampled["win_rate"] = np.full(num_samples, START_WIN_RATE)
        counts = _answer_counts(totals)
        summary = (
            f"{counts['num_captions']} captions and {counts['num_questions']} yes/no "
            "questions; 95 % bootstrap intervals over scenes"
        )
        return Measurement(
            metrics=described(values, intervals_of(resampled), METRICS),
            counts=counts,
            dropped=dropped,
            summary=summary,
            resampled=resampled,
        )

    def show(self, prompt: Prompt, text: str) -> ShownAnswer:
        """The caption with its errors marked; plain when the prompt has no scene."""
        try:
            scene = scene_of(prompt)
        except MissingTruth:
            # Shown all the same: what cannot be judged can still be read.
            scene = None
        return marked_caption(text, scene)

    def heldout_pairs(self, prompts: TaskPrompts, limit: int) -> list[PreferencePair]:
        """True captions of these scenes over the same captions corrupted by rule, kinds of error in turn."""
        pairs: list[PreferencePair] = []
        for index, prompt in enumerate(prompts[CAPTIONS]):
            first_kind = index % len(ERROR_KINDS)
            pair = _corrupted_pair(prompt, first_kind)
            # A scene may allow no error at all.
            if pair is not None:
                pairs.append(pair)
        return pairs[:limit]


def _corrupted_pair(prompt: Prompt, first_kind: int) -> PreferencePair | None:
    """The prompt's reference over the same text with an error of this kind, or of the next that the scene allows."""
    kinds = (*ERROR_KINDS[first_kind:], *ERROR_KINDS[:first_kind])
    for kind in kinds:
        wrong_text = corrupt(prompt, kind, SEED)
        # Not a text: the reason why the scene has no room for this kind of error.
        if not isinstance(wrong_text, str):
            continue
        return PreferencePair(
            id=f"{prompt.id}/{kind}",
            prompt=prompt,
            chosen=Response(prompt.reference or ""),
            rejected=Response(wrong_text),
            source="corrupted",
        )
    return None


def _count(
    answers: SuiteAnswers,
) -> tuple[defaultdict[str, Counter[str]], dict[str, int]]:
    """Counts by scene, and the number of answers that cannot be counted, by reason."""
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    dropped: Counter[str] = Counter()
    # The order of the rows decides which scene a bootstrap draw means.
    for task, count_of in ((CAPTIONS, _caption_row), (QUESTIONS, _question_row)):
        for group in answers.tasks.get(task, ()):
            try:
                row = count_of(group)
            except MissingTruth:
                dropped["no_truth"] += 1
                continue
            scene = group_of(group.prompt)
            rows[scene].update(row)
    return rows, dict(dropped)


def _caption_row(group: RolloutGroup) -> dict[str, int]:
    """What a caption adds to the counts of its scene (MissingTruth when the scene is not known)."""
    completion = group.completions[0]
    scene = scene_of(group.prompt)
    mentions = parse_caption(completion.text)
    num_words = len(completion.text.split())
    # CHAIR is about existence alone: colours and places are left out.
    named = [mention.shape for mention in mentions]
    counts = caption_counts(named, scene.shapes, num_words)
    counts["truncated"] = int(completion.finish_reason == "length")
    return counts


def _question_row(group: RolloutGroup) -> dict[str, int]:
    """What an answer adds to the counts of its scene and POPE split (MissingTruth when the answer is not known)."""
    true_answer, split = answer_of(group.prompt)
    text = group.completions[0].text
    official = answer_counts(parse_answer(text), true_answer)
    strict = answer_counts(parse_strictly(text), true_answer)
    row: dict[str, int] = {}
    for name in POPE_COUNTS:
        row[_pope_column(split, name)] = official[name]
        row[_pope_column(split, f"strict_{name}")] = strict[name]
    return row


def _pope_column(split: str, count: str) -> str:
    # The form that `pope_by_split` reads.
    return f"{split}/{count}"


_POPE_COLUMNS = [
    _pope_column(split, count) for split in POPE_SPLITS for count in POPE_COUNTS
]
_STRICT_COLUMNS = [
    _pope_column(split, f"strict_{count}")
    for split in POPE_SPLITS
    for count in POPE_COUNTS
]
_COLUMN_NAMES = (
    *_POPE_COLUMNS,
    *_STRICT_COLUMNS,
    *CHAIR_COUNTS,
    "truncated",
    *WIN_COUNTS,
)


def _statistic(counted: Mapping[str, int]) -> Statistic:
    """The metrics of those columns that hold anything; `counted` are the columns' totals."""
    splits: list[str] = []
    for split in POPE_SPLITS:
        num_answers = 0
        for name in POPE_COUNTS:
            num_answers += counted[_pope_column(split, name)]
        if num_answers:
            splits.append(split)

    def statistic(totals: Columns) -> dict[str, Array]:
        # What was never asked has no metric: 0 would read as a measurement.
        metrics: dict[str, Array] = {}
        if counted["captions"]:
            metrics |= chair(totals)
        metrics |= pope_by_split(totals, splits)
        if counted["compared"]:
            metrics |= win_rate(totals)
        return metrics

    return statistic


def _answer_counts(totals: dict[str, int]) -> dict[str, int]:
    return {
        "num_captions": totals["captions"],
        "num_truncated": totals["truncated"],
        "num_questions": sum(totals[name] for name in _POPE_COLUMNS),
        "num_compared": totals["compared"],
    }
