"""CHAIR: how much of what a caption names is not there (Rohrbach et al. 2018, arXiv 1809.02156), and its recall.

    chair_s      captions with at least one hallucinated object / captions
    chair_i      hallucinated mentions / all object mentions
    recall       distinct true objects mentioned / true objects
    mean_length  words per caption

Only existence counts: a wrong colour is no hallucination here, a second mention of a true object is neither.
A mute model has perfect CHAIR, which is why recall stands beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from reward.suites.bootstrap import Array, Columns, ratio

CHAIR_COUNTS = (
    "captions",
    "hallucinated_captions",
    "mentions",
    "hallucinated_mentions",
    "named",
    "present",
    "words",
)


def caption_counts(
    mentions: Sequence[str],
    present: Collection[str],
    num_words: int,
) -> dict[str, int]:
    """What one caption adds to the totals.

    Args:
        mentions: the objects it names, repeats included.
        present: the objects in the picture.
    """
    mentioned = set(mentions)
    true_objects = set(present)
    # Mentions, not objects: to invent one thing twice counts twice.
    num_hallucinated = 0
    for mention in mentions:
        if mention not in true_objects:
            num_hallucinated += 1
    return {
        "captions": 1,
        "hallucinated_captions": int(num_hallucinated > 0),
        "mentions": len(mentions),
        "hallucinated_mentions": num_hallucinated,
        "named": len(mentioned & true_objects),
        "present": len(true_objects),
        "words": num_words,
    }


def chair(totals: Columns) -> dict[str, Array]:
    """The four metrics of summed counts (0 where nothing was mentioned) and the score that picks a checkpoint.

    `selection` is the harmonic mean of recall and 1 - chair_i, the F1 of naming objects: neither silence nor naming
    everything raises it.
    """
    # The same formulas serve the point estimate and every resampling.
    captions = totals["captions"]
    chair_s = ratio(totals["hallucinated_captions"], captions)
    chair_i = ratio(totals["hallucinated_mentions"], totals["mentions"])
    recall = ratio(totals["named"], totals["present"])
    precision = 1 - chair_i
    return {
        "chair_s": chair_s,
        "chair_i": chair_i,
        "recall": recall,
        "mean_length": ratio(totals["words"], captions),
        "selection": ratio(2 * precision * recall, precision + recall),
    }
