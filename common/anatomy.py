"""What a preference set is made of: its lengths, how far the sides are apart, what repeats, who wrote it.

"The construction of the data decides the outcome" is the finding of arXiv 2407.02477; these are the details it names.
Pairs are counted one by one, so that a set need not fit into memory; only numbers and hashes of texts are kept.
Lengths are in words (`common.words`). Shares are of the pairs counted, None where there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from common.records import Dropped, PreferencePair, Prompt
from common.words import MAX_WORDS, distance, words

NEAR_DUPLICATE = 0.9
"""Chosen and rejected are near-duplicates from this similarity (1 - distance) on (ours)."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

REPEATED = ("prompt", "question", "chosen", "rejected", "pair")
"""Texts whose repetition is counted: `prompt` is the question with its images, `pair` all of it."""

Figures = dict[str, Any]
"""JSON: names -> numbers, lists and further names."""


def evenly(total: int, count: int | None) -> Collection[int]:
    """`count` of the numbers below `total`, evenly spread; all of them for None or when there are no more."""
    return (
        range(total)
        if count is None or count >= total
        else {index * total // count for index in range(count)}
    )


def share(part: float, whole: int) -> float | None:
    """None of nothing."""
    return part / whole if whole else None


def summary(values: Sequence[float]) -> Figures | None:
    """Mean, least, greatest and quantiles (keyed by share, linearly interpolated); None without values."""
    if not values:
        return None
    marks = np.quantile(values, QUANTILES)
    found = {
        "mean": float(np.mean(values)),
        "min": float(min(values)),
        "max": float(max(values)),
    }
    return {
        **found,
        "quantiles": {
            str(q): float(mark) for q, mark in zip(QUANTILES, marks, strict=True)
        },
    }


def histogram(
    columns: Mapping[str, Sequence[float]],
    bins: int = 24,
    span: tuple[float, float] | None = None,
) -> Figures | None:
    """Counts per column over common `edges` (one more than counts); None without values.

    Edges divide `span` evenly; without it they lie between whole numbers over the middle 98 % of all values, and what
    is beyond counts in the outermost bars.
    """
    values = np.concatenate(
        [np.asarray(column, dtype=float) for column in columns.values()]
    )
    if not len(values):
        return None
    if span is None:
        low, high = np.quantile(values, (0.01, 0.99), method="nearest")
        step = max(1, -(-int(high - low + 1) // bins))
        edges = np.arange(low - 0.5, high + 0.5 + step, step)
    else:
        edges = np.linspace(*span, bins + 1)
    counts = {
        name: np.histogram(np.clip(column, edges[0], edges[-1]), edges)[0].tolist()
        for name, column in columns.items()
    }
    return {"edges": edges.tolist(), "counts": counts}


class Anatomy:
    """Counts pairs. `figures` can be asked for at any time."""

    def __init__(self) -> None:
        self.chosen_words: list[int] = []
        self.rejected_words: list[int] = []
        self.distances: list[float] = []
        self._counts: Counter[str] = Counter()
        self._texts: dict[str, Counter[bytes]] = {name: Counter() for name in REPEATED}
        self._was_chosen: set[bytes] = set()
        self._was_rejected: list[bytes] = []
        self._images: Counter[str] = Counter()
        self._paths: dict[str, str] = {}
        self._sources: Counter[str] = Counter()
        self._versions: Counter[int | None] = Counter()

    @property
    def num_pairs(self) -> int:
        return len(self.distances)

    def add(self, pair: PreferencePair) -> None:
        """Count one pair. Looks at no pixels."""
        left, right = words(pair.chosen.text), words(pair.rejected.text)
        self.chosen_words.append(len(left))
        self.rejected_words.append(len(right))
        self.distances.append(distance(left, right))
        self._counts["cut"] += max(len(left), len(right)) > MAX_WORDS
        self._counts["identical"] += pair.chosen.text == pair.rejected.text
        says = [
            side[0] if side and side[0] in ("yes", "no") else ""
            for side in (left, right)
        ]
        self._counts["yes_no"] += all(says)
        self._counts["opposed"] += all(says) and says[0] != says[1]
        self._counts["chosen_yes"] += all(says) and says[0] == "yes"
        self._count_repeats(pair)
        self._count_images(pair.prompt)
        self._sources[pair.source] += 1
        self._versions[pair.weight_version] += 1
        if pair.scores is not None:
            self._counts["scored"] += 1
            self._counts["inverted"] += pair.scores[0] <= pair.scores[1]

    def _count_repeats(self, pair: PreferencePair) -> None:
        prompt = (
            question_of(pair.prompt),
            *(image.sha256 for image in pair.prompt.images),
        )
        chosen, rejected = pair.chosen.text, pair.rejected.text
        for name, text in zip(
            REPEATED,
            (prompt, prompt[:1], (chosen,), (rejected,), (*prompt, chosen, rejected)),
            strict=True,
        ):
            self._texts[name][_hash(text)] += 1
        self._was_chosen.add(_hash((*prompt, chosen)))
        self._was_rejected.append(_hash((*prompt, rejected)))

    def _count_images(self, prompt: Prompt) -> None:
        for image in {image.sha256: image for image in prompt.images}.values():
            self._images[image.sha256] += 1
            self._paths[image.sha256] = image.path
        self._counts["without_image"] += not prompt.images
        self._counts["several_images"] += len(prompt.images) > 1

    def figures(self) -> Figures:
        """All that was counted. Looks once for each image file.

        `both_sides_frac`: pairs whose rejected answer is the chosen one of some pair with the same prompt.
        `yes_no`: pairs whose sides both begin with yes or no; of them `opposed_frac` differ there.
        `not_higher`: pairs with scores of which the chosen side has no higher one.
        """
        return {
            "num_pairs": self.num_pairs,
            "length": self._lengths(),
            "distance": self._distances(),
            "repeats": {
                **{name: _repeats(counts) for name, counts in self._texts.items()},
                "both_sides_frac": share(
                    sum(key in self._was_chosen for key in self._was_rejected),
                    self.num_pairs,
                ),
            },
            "yes_no": {
                "frac": share(self._counts["yes_no"], self.num_pairs),
                "opposed_frac": share(self._counts["opposed"], self._counts["yes_no"]),
                "chosen_yes_frac": share(
                    self._counts["chosen_yes"], self._counts["yes_no"]
                ),
            },
            "images": self._image_figures(),
            "sources": dict(self._sources.most_common()),
            "weight_versions": _named(self._versions),
            "scores": {
                "num_pairs": self._counts["scored"],
                "not_higher": self._counts["inverted"],
            },
        }

    def _lengths(self) -> Figures:
        """`ratio` is of the means; `gap` is chosen - rejected; `chosen_longer_frac` leaves out equal lengths."""
        chosen, rejected, num = self.chosen_words, self.rejected_words, self.num_pairs
        gaps = [left - right for left, right in zip(chosen, rejected, strict=True)]
        equal = gaps.count(0)
        return {
            "chosen": summary(chosen),
            "rejected": summary(rejected),
            "gap": summary(gaps),
            "ratio": sum(chosen) / sum(rejected) if sum(rejected) else None,
            "chosen_longer_frac": share(sum(gap > 0 for gap in gaps), num - equal),
            "equal_frac": share(equal, num),
            "num_empty": sum(
                not min(both) for both in zip(chosen, rejected, strict=True)
            ),
            "histogram": histogram({"chosen": chosen, "rejected": rejected}),
            "gap_histogram": histogram({"gap": gaps}),
        }

    def _distances(self) -> Figures:
        """Normalised edit distance of the sides; `num_cut` pairs were compared over their first words only."""
        near = sum(1 - value >= NEAR_DUPLICATE for value in self.distances)
        return {
            "words": summary(self.distances),
            "near_duplicate_frac": share(near, self.num_pairs),
            "near_duplicate_from": NEAR_DUPLICATE,
            "identical_frac": share(self._counts["identical"], self.num_pairs),
            "num_cut": self._counts["cut"],
            "max_words": MAX_WORDS,
            "histogram": histogram({"distance": self.distances}, 20, (0, 1)),
        }

    def _image_figures(self) -> Figures:
        """`reuse` says of how many images there are so many pairs: {pairs per image: images}."""
        missing = {
            sha256 for sha256, path in self._paths.items() if not Path(path).is_file()
        }
        return {
            "num_images": len(self._images),
            "num_missing": len(missing),
            "num_pairs_missing": sum(self._images[sha256] for sha256 in missing),
            "num_pairs_without": self._counts["without_image"],
            "num_pairs_several": self._counts["several_images"],
            "pairs_per_image": summary(list(self._images.values())),
            "reuse": {
                str(pairs): images
                for pairs, images in sorted(Counter(self._images.values()).items())
            },
        }


def anatomy(pairs: Iterable[PreferencePair]) -> Figures:
    """The figures of these pairs."""
    found = Anatomy()
    for pair in pairs:
        found.add(pair)
    return found.figures()


def drop_counts(dropped: Iterable[Dropped]) -> dict[str, int]:
    """How often each reason, the most frequent first."""
    return dict(Counter(drop.reason for drop in dropped).most_common())


def question_of(prompt: Prompt) -> str:
    """The texts of all turns with a mark where an image stands; of several turns, with who says them."""
    turns = [
        (
            turn.role,
            "".join(
                "<image>" if part.kind == "image" else part.text for part in turn.parts
            ),
        )
        for turn in prompt.messages
    ]
    return (
        turns[0][1]
        if len(turns) == 1
        else "\n".join(f"{role}: {text}" for role, text in turns)
    )


def _hash(pieces: Sequence[str]) -> bytes:
    return blake2b("\0".join(pieces).encode(), digest_size=16).digest()


def _repeats(counts: Counter[bytes]) -> Figures:
    """`repeated_frac` is the share of pairs whose text some other pair has as well."""
    repeated = sum(count for count in counts.values() if count > 1)
    return {
        "num_distinct": len(counts),
        "repeated_frac": share(repeated, counts.total()),
    }


def _named(versions: Mapping[int | None, int]) -> dict[str, int]:
    """Weight versions in order, "none" (offline pairs) first."""
    ordered = sorted(
        versions.items(), key=lambda item: -1 if item[0] is None else item[0]
    )
    return {
        "none" if version is None else str(version): count for version, count in ordered
    }
