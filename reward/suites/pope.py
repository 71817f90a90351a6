"""POPE: yes/no questions about what is there; "yes" is the positive class (Li et al. 2023, arXiv 2305.10355)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from common.evaluation import MetricInfo
from reward.suites.bootstrap import Array, Columns, ratio

Answer: TypeAlias = Literal["yes", "no"]

POPE_COUNTS = ("tp", "fp", "tn", "fn")
POPE_AVERAGES = ("accuracy", "f1", "yes_ratio")
"""Metrics whose mean over the splits is reported as well."""

POPE_SPLITS = ("random", "popular", "adversarial")
"""The published ones, in the order of the tables."""

_OUTCOMES: dict[tuple[Answer, Answer], str] = {
    ("yes", "yes"): "tp",
    ("yes", "no"): "fp",
    ("no", "no"): "tn",
    ("no", "yes"): "fn",
}
"""(predicted, true) -> count."""


def pope_infos(tasks: tuple[str, ...] = ()) -> dict[str, MetricInfo]:
    """What tables say of the averages, and of precision, recall and F1 of every published split.

    Precision and recall have no direction: whoever says yes less often raises the one and lowers the other.
    """
    infos = {
        "pope_accuracy": MetricInfo(
            "POPE accuracy", "higher", "mean of the splits", tasks=tasks
        ),
        "pope_f1": MetricInfo("POPE F1", "higher", "mean of the splits", tasks=tasks),
        "pope_yes_ratio": MetricInfo(
            "POPE yes ratio", "", "0.5 is balanced", tasks=tasks
        ),
    }
    for split in POPE_SPLITS:
        infos[f"pope/{split}/precision"] = MetricInfo(
            f"POPE {split} precision",
            "",
            "of the answers yes, the right ones",
            tasks=tasks,
        )
        infos[f"pope/{split}/recall"] = MetricInfo(
            f"POPE {split} recall", "", "of what is there, what gets a yes", tasks=tasks
        )
        infos[f"pope/{split}/f1"] = MetricInfo(
            f"POPE {split} F1", "higher", f"POPE F1 of the split {split}", tasks=tasks
        )
    return infos


def parse_answer(text: str) -> Answer:
    """Read yes or no by the official script's rule, its blind spots included, so that numbers compare.

    Of the first sentence, without commas: any word No, not or no means no, everything else means yes.
    """
    sentence = text.split(".")[0]
    # Not `split()`: the official script leaves line breaks inside words.
    words = sentence.replace(",", "").split(" ")
    negations = {"No", "not", "no"}
    if negations.intersection(words):
        return "no"
    return "yes"


_DENIAL = re.compile("\\b(?:no|not)\\b|n['\u2018\u2019\u02bc\u2032]t\\b", re.IGNORECASE)


def parse_strictly(text: str) -> Answer:
    """Read yes or no without the official script's blind spots: what it misses before, around and in other letters.

    Of the first sentence of the stripped text, any word no or not, in any case, next to any punctuation, or the end
    of "isn't" means no; everything else means yes, as there.
    """
    sentence = text.strip().split(".")[0]
    return "no" if _DENIAL.search(sentence) else "yes"


def answer_counts(predicted: Answer, true: Answer) -> dict[str, int]:
    """What one answer adds to the totals: one of tp, fp, tn, fn."""
    counts = dict.fromkeys(POPE_COUNTS, 0)
    counts[_OUTCOMES[predicted, true]] = 1
    return counts


def pope(totals: Columns) -> dict[str, Array]:
    """Metrics of summed counts; a ratio of nothing is 0. `yes_ratio` is of the predictions, not of the labels."""
    tp = totals["tp"]
    fp = totals["fp"]
    tn = totals["tn"]
    fn = totals["fn"]
    said_yes = tp + fp
    answers = said_yes + tn + fn
    return {
        "accuracy": ratio(tp + tn, answers),
        "precision": ratio(tp, said_yes),
        "recall": ratio(tp, tp + fn),
        # The harmonic mean of precision and recall, without dividing by either.
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "yes_ratio": ratio(said_yes, answers),
    }


def pope_by_split(totals: Columns, splits: Sequence[str]) -> dict[str, Array]:
    """`pope/SPLIT/METRIC` of every split and `pope_METRIC`, the mean over splits of `POPE_AVERAGES`.

    `pope/SPLIT/strict_METRIC` is the same of the answers as `parse_strictly` reads them.

    Args:
        totals: columns `SPLIT/COUNT`, and `SPLIT/strict_COUNT` of the strict reading.
    """
    metrics: dict[str, Array] = {}
    for split in splits:
        counts = {name: totals[f"{split}/{name}"] for name in POPE_COUNTS}
        for name, value in pope(counts).items():
            metrics[f"pope/{split}/{name}"] = value
        strict = {name: totals[f"{split}/strict_{name}"] for name in POPE_COUNTS}
        for name, value in pope(strict).items():
            metrics[f"pope/{split}/strict_{name}"] = value
    # Without any split there is nothing to average, and no metric.
    if not splits:
        return metrics
    for name in POPE_AVERAGES:
        of_splits = [metrics[f"pope/{split}/{name}"] for split in splits]
        metrics[f"pope_{name}"] = np.mean(of_splits, axis=0)
    return metrics
