"""What a preference set is made of: lengths, distance between the sides, repetition, images and sources.

How a set is constructed decides what training on it achieves (arXiv 2407.02477); these are the properties that the
paper names. Pairs are counted one at a time, and only numbers and hashes of texts are kept, so a set need not fit into
memory. Lengths are in words (`common.data.words`). Names that end in `_frac` are shares of the counted pairs, None when
there are none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from common.data.words import MAX_WORDS, distance, words
from common.records import Dropped, PreferencePair, Prompt

NEAR_DUPLICATE = 0.9
"""The two sides are near-duplicates when their similarity (1 - distance) is at least this. The value is ours."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

REPEATED = ("prompt", "question", "chosen", "rejected", "pair")
"""The texts whose repetition is counted: `prompt` is the question with its images, `pair` also has both answers."""

Figures = dict[str, Any]
"""A JSON object: numbers, lists and further objects by name."""

NUM_BINS = 24
DISTANCE_BINS = 20
"""Bars of a histogram of lengths, and of one of distances."""


def evenly(total: int, count: int | None) -> Collection[int]:
    """`count` evenly spread row numbers of `total` rows; all of them when there are no more, or `count` is None."""
    if count is None or count >= total:
        return range(total)
    return {index * total // count for index in range(count)}


def share(part: float, whole: int) -> float | None:
    """`part` / `whole`, None when `whole` is 0."""
    if not whole:
        return None
    return part / whole


def summary(values: Sequence[float]) -> Figures | None:
    """Mean, minimum, maximum and linearly interpolated quantiles, keyed by share; None without values."""
    if not values:
        return None
    quantiles = {}
    at_quantiles = np.quantile(values, QUANTILES)
    for fraction, value in zip(QUANTILES, at_quantiles, strict=True):
        quantiles[str(fraction)] = float(value)
    return {
        "mean": float(np.mean(values)),
        "min": float(min(values)),
        "max": float(max(values)),
        "quantiles": quantiles,
    }


def histogram(
    columns: Mapping[str, Sequence[float]],
    bins: int = NUM_BINS,
    span: tuple[float, float] | None = None,
) -> Figures | None:
    """How many values of each column lie in each bar; None without values. Values beyond the edges count in the
    outermost bars.

    Args:
        columns: values by name. They share the edges, so that their bars can be drawn over each other.
        bins: the number of bars, at most.
        span: the outermost edges; the bars divide it evenly. Without it, values must be whole numbers: the edges lie
            between whole numbers and cover the middle 98 % of all values.

    Returns:
        `edges`, one more than there are bars, and `counts`, a list per column.
    """
    arrays = [np.asarray(column, dtype=float) for column in columns.values()]
    values = np.concatenate(arrays)
    if not len(values):
        return None
    if span is None:
        low, high = np.quantile(values, (0.01, 0.99), method="nearest")
        num_numbers = int(high - low + 1)
        # Rounded up: then at most `bins` bars of so many whole numbers cover them all.
        step = max(1, math.ceil(num_numbers / bins))
        edges = np.arange(low - 0.5, high + 0.5 + step, step)
    else:
        edges = np.linspace(*span, bins + 1)
    counts = {}
    for name, column in columns.items():
        clipped = np.clip(column, edges[0], edges[-1])
        column_counts, _ = np.histogram(clipped, edges)
        counts[name] = column_counts.tolist()
    return {"edges": edges.tolist(), "counts": counts}


class Anatomy:
    """Counts the pairs of a set. `figures` can be asked for at any time."""

    def __init__(self) -> None:
        self.chosen_words: list[int] = []
        self.rejected_words: list[int] = []
        self.distances: list[float] = []
        self._counts: Counter[str] = Counter()
        # How often each text of `REPEATED` occurred, by hash.
        self._texts: dict[str, Counter[bytes]] = {name: Counter() for name in REPEATED}
        # Prompts with their chosen and with their rejected answers, by hash.
        self._was_chosen: set[bytes] = set()
        self._was_rejected: list[bytes] = []
        self._pairs_of_image: Counter[str] = Counter()
        self._path_of_image: dict[str, str] = {}
        self._sources: Counter[str] = Counter()
        self._versions: Counter[int | None] = Counter()

    @property
    def num_pairs(self) -> int:
        """How many pairs were counted."""
        return len(self.distances)

    def add(self, pair: PreferencePair) -> None:
        """Count one pair. No image is opened."""
        chosen = words(pair.chosen.text)
        rejected = words(pair.rejected.text)
        self.chosen_words.append(len(chosen))
        self.rejected_words.append(len(rejected))
        self.distances.append(distance(chosen, rejected))
        longer = max(len(chosen), len(rejected))
        self._counts["cut"] += longer > MAX_WORDS
        self._counts["identical"] += pair.chosen.text == pair.rejected.text
        self._count_yes_no(chosen[:1], rejected[:1])
        self._count_repeats(pair)
        self._count_images(pair.prompt)
        self._sources[pair.source] += 1
        self._versions[pair.weight_version] += 1
        if pair.scores is not None:
            chosen_score, rejected_score = pair.scores
            self._counts["scored"] += 1
            self._counts["inverted"] += chosen_score <= rejected_score

    def _count_yes_no(self, chosen: list[str], rejected: list[str]) -> None:
        """Count a pair by the first word of its sides, if both begin with yes or no."""
        yes_or_no = (["yes"], ["no"])
        if chosen not in yes_or_no or rejected not in yes_or_no:
            return
        self._counts["yes_no"] += 1
        self._counts["opposed"] += chosen != rejected
        self._counts["chosen_yes"] += chosen == ["yes"]

    def _count_repeats(self, pair: PreferencePair) -> None:
        question = question_of(pair.prompt)
        image_hashes = [image.sha256 for image in pair.prompt.images]
        prompt = (question, *image_hashes)
        chosen = pair.chosen.text
        rejected = pair.rejected.text
        texts = {
            "prompt": prompt,
            "question": (question,),
            "chosen": (chosen,),
            "rejected": (rejected,),
            "pair": (*prompt, chosen, rejected),
        }
        for name in REPEATED:
            text_hash = _hash(texts[name])
            self._texts[name][text_hash] += 1
        # With the prompt: "Yes." is right of one image and wrong of another.
        self._was_chosen.add(_hash((*prompt, chosen)))
        self._was_rejected.append(_hash((*prompt, rejected)))

    def _count_images(self, prompt: Prompt) -> None:
        # A dict, so that an image that stands twice in one prompt counts once.
        path_of_image = {image.sha256: image.path for image in prompt.images}
        self._pairs_of_image.update(path_of_image.keys())
        self._path_of_image.update(path_of_image)
        self._counts["without_image"] += not prompt.images
        self._counts["several_images"] += len(prompt.images) > 1

    def figures(self) -> Figures:
        """All figures of the pairs counted so far. Looks once whether each image file exists.

        `both_sides_frac`: pairs whose rejected answer is the chosen one of some pair with the same prompt.
        `yes_no`: pairs whose sides both begin with yes or no; of these, `opposed_frac` begin differently.
        `not_higher`: pairs whose chosen side does not have the higher score.
        """
        counts = self._counts
        yes_no = {
            "frac": share(counts["yes_no"], self.num_pairs),
            "opposed_frac": share(counts["opposed"], counts["yes_no"]),
            "chosen_yes_frac": share(counts["chosen_yes"], counts["yes_no"]),
        }
        scores = {
            "num_pairs": counts["scored"],
            "not_higher": counts["inverted"],
        }
        return {
            "num_pairs": self.num_pairs,
            "length": self._length_figures(),
            "distance": self._distance_figures(),
            "repeats": self._repeat_figures(),
            "yes_no": yes_no,
            "images": self._image_figures(),
            "sources": dict(self._sources.most_common()),
            "weight_versions": _version_names(self._versions),
            "scores": scores,
        }

    def _length_figures(self) -> Figures:
        """Lengths of both sides in words.

        `ratio` is the mean of the chosen over the mean of the rejected, `gap` is chosen - rejected of a pair.
        `chosen_longer_frac` is of the pairs whose sides differ in length.
        """
        chosen = self.chosen_words
        rejected = self.rejected_words
        gaps = []
        num_empty = 0
        for num_chosen, num_rejected in zip(chosen, rejected, strict=True):
            gaps.append(num_chosen - num_rejected)
            num_empty += num_chosen == 0 or num_rejected == 0
        num_equal = gaps.count(0)
        num_different = self.num_pairs - num_equal
        num_longer = sum(gap > 0 for gap in gaps)
        total_rejected = sum(rejected)
        return {
            "chosen": summary(chosen),
            "rejected": summary(rejected),
            "gap": summary(gaps),
            "ratio": share(sum(chosen), total_rejected),
            "chosen_longer_frac": share(num_longer, num_different),
            "equal_frac": share(num_equal, self.num_pairs),
            "num_empty": num_empty,
            "histogram": histogram({"chosen": chosen, "rejected": rejected}),
            "gap_histogram": histogram({"gap": gaps}),
        }

    def _distance_figures(self) -> Figures:
        """Normalised edit distance of the sides. `num_cut` pairs were compared over their first `max_words` only."""
        # Similarity is 1 - distance.
        num_near = sum(1 - value >= NEAR_DUPLICATE for value in self.distances)
        return {
            "words": summary(self.distances),
            "near_duplicate_frac": share(num_near, self.num_pairs),
            "near_duplicate_from": NEAR_DUPLICATE,
            "identical_frac": share(self._counts["identical"], self.num_pairs),
            "num_cut": self._counts["cut"],
            "max_words": MAX_WORDS,
            "histogram": histogram(
                {"distance": self.distances},
                bins=DISTANCE_BINS,
                span=(0, 1),
            ),
        }

    def _repeat_figures(self) -> Figures:
        """Per text of `REPEATED`: how many distinct ones, and the share of pairs whose text another pair has, too."""
        figures: Figures = {}
        for name, counts in self._texts.items():
            num_repeated = 0
            for count in counts.values():
                if count > 1:
                    num_repeated += count
            figures[name] = {
                "num_distinct": len(counts),
                "repeated_frac": share(num_repeated, counts.total()),
            }
        num_both_sides = sum(text in self._was_chosen for text in self._was_rejected)
        figures["both_sides_frac"] = share(num_both_sides, self.num_pairs)
        return figures

    def _image_figures(self) -> Figures:
        """`reuse` maps a number of pairs to how many images occur in exactly so many pairs."""
        num_missing = 0
        num_pairs_missing = 0
        for sha256, path in self._path_of_image.items():
            if not Path(path).is_file():
                num_missing += 1
                num_pairs_missing += self._pairs_of_image[sha256]
        pairs_per_image = list(self._pairs_of_image.values())
        reuse = {}
        for num_pairs, num_images in sorted(Counter(pairs_per_image).items()):
            reuse[str(num_pairs)] = num_images
        return {
            "num_images": len(self._pairs_of_image),
            "num_missing": num_missing,
            "num_pairs_missing": num_pairs_missing,
            "num_pairs_without": self._counts["without_image"],
            "num_pairs_several": self._counts["several_images"],
            "pairs_per_image": summary(pairs_per_image),
            "reuse": reuse,
        }


def anatomy(pairs: Iterable[PreferencePair]) -> Figures:
    """The figures of these pairs."""
    counted = Anatomy()
    for pair in pairs:
        counted.add(pair)
    return counted.figures()


def drop_counts(dropped: Iterable[Dropped]) -> dict[str, int]:
    """How often each drop reason occurs, the most frequent first."""
    counts = Counter(drop.reason for drop in dropped)
    return dict(counts.most_common())


def question_of(prompt: Prompt) -> str:
    """The text of all turns with `<image>` where an image stands. Roles are named if there is more than one turn."""
    turns = []
    for message in prompt.messages:
        text = ""
        for part in message.parts:
            text += "<image>" if part.kind == "image" else part.text
        turns.append((message.role, text))
    if len(turns) == 1:
        _, only_text = turns[0]
        return only_text
    lines = [f"{role}: {text}" for role, text in turns]
    return "\n".join(lines)


def _hash(pieces: Sequence[str]) -> bytes:
    # With a separator, so that ("ab", "c") and ("a", "bc") differ.
    joined = "\0".join(pieces)
    return blake2b(joined.encode(), digest_size=16).digest()


def _version_names(versions: Mapping[int | None, int]) -> dict[str, int]:
    """Pairs per weight version in rising order; offline pairs stand first, under "none"."""
    names = {}
    # Keys of JSON objects are texts, and None cannot be sorted among numbers.
    if None in versions:
        names["none"] = versions[None]
    numbers = [version for version in versions if version is not None]
    for number in sorted(numbers):
        names[str(number)] = versions[number]
    return names
