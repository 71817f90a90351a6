"""POPE: yes/no questions about what is there; "yes" is the positive class (Li et al. 2023, arXiv 2305.10355)."""

from __future__ import annotations

from common.shapes.questions import Answer
from reward.bootstrap import Array, Columns, ratio

POPE_COUNTS = ("tp", "fp", "tn", "fn")
POPE_METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def parse_answer(text: str) -> Answer:
    """The official script's rule, its blind spots included, so that numbers compare.

    Of the first sentence, without commas: any word No, not or no means no, everything else means yes.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def answer_counts(predicted: Answer, true: Answer) -> dict[str, int]:
    """What one answer adds to the totals: one of tp, fp, tn, fn."""
    return {
        "tp": int(predicted == "yes" and true == "yes"),
        "fp": int(predicted == "yes" and true == "no"),
        "tn": int(predicted == "no" and true == "no"),
        "fn": int(predicted == "no" and true == "yes"),
    }


def pope(totals: Columns) -> dict[str, Array]:
    """Metrics of summed counts; a ratio of nothing is 0. `yes_ratio` is of the predictions, not of the labels."""
    tp, fp, tn, fn = (totals[name] for name in POPE_COUNTS)
    return {
        "accuracy": ratio(tp + tn, tp + fp + tn + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "yes_ratio": ratio(tp + fp, tp + fp + tn + fn),
    }
