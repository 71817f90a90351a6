"""One line for each thing that one should know about a preference set before training on it.

Each verdict follows from the figures alone. The limits are ours: where the effect is plain, not where it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from common.data.anatomy import Figures

Level = Literal["warning", "note", "good"]
LEVELS: tuple[Level, ...] = ("warning", "note", "good")
"""In the order shown."""

LENGTH_RATIO = 1.25
LENGTH_ALONE = 0.65
NEAR_DUPLICATES = 0.05
YES_BIAS = 0.15
BLIND = 0.6
GATE_DROP = 0.05
"""A policy that looks at the image ranks at least so many more pairs right than a blind one."""
OFF_POLICY = 1.0
"""Nats per token by which one side is less likely than the other."""

_BLIND_NAMES = {
    "blank": "a blind model (blank image)",
    "shuffled": "a model with another pair's image",
    "no_image": "a blind model (no image)",
}
_MEASURE_NAMES = {"sum": "log-prob", "per_token": "log-prob per token"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One conclusion: `warning` asks for a decision, `note` is good to know, `good` rules a danger out."""

    level: Level
    text: str


def verdicts(figures: Figures) -> list[Verdict]:
    """Conclude from the figures of `cluster.inspect.job`, warnings first."""
    if not figures["num_pairs"]:
        return [_warning("empty set: there is no pair to learn from")]
    conclusions = [
        *_rows(figures),
        *_lengths(figures["length"]),
        *_likeness(figures["distance"], figures["repeats"]),
        *_yes_no(figures["yes_no"]),
        *_images(figures["images"], figures["num_pairs"]),
    ]
    policy = figures["policy"]
    if policy:
        conclusions += _on_policy(policy)
        conclusions += _grounding(policy["grounding"])
    return sorted(conclusions, key=_rank)


def _rank(verdict: Verdict) -> int:
    return LEVELS.index(verdict.level)


def percent(value: float | None) -> str:
    """Format a share; "–" for None."""
    if value is None:
        return "–"
    # Shares near 0 and 1 keep a digit, so that a few pairs do not read as none or all.
    if 0 < value < 0.01 or 0.99 < value < 1:
        return f"{value:.1%}"
    return f"{value:.0%}"


def _warning(text: str) -> Verdict:
    return Verdict("warning", text)


def _note(text: str) -> Verdict:
    return Verdict("note", text)


def _good(text: str) -> Verdict:
    return Verdict("good", text)


def _rows(figures: Figures) -> Iterator[Verdict]:
    num_unread = sum(figures["dropped_reading"].values())
    if num_unread:
        num_rows = figures["num_rows_read"]
        yield _warning(
            f"{num_unread:,} of {num_rows:,} rows are no pair and were left out"
        )
    num_wrong = figures["scores"]["not_higher"]
    if num_wrong:
        yield _warning(
            f"{num_wrong:,} pairs whose chosen side has no higher score "
            "than the rejected one"
        )


def _lengths(length: Figures) -> Iterator[Verdict]:
    num_empty = length["num_empty"]
    if num_empty:
        yield _warning(f"{num_empty:,} pairs have a side without a word")
    ratio = length["ratio"]
    chosen_longer = length["chosen_longer_frac"]
    if ratio is None or chosen_longer is None:
        return
    if ratio >= 1:
        comparative, factor = "longer", ratio
    else:
        comparative, factor = "shorter", 1 / ratio if ratio else float("inf")
    # How many pairs "the longer one" or "the shorter one" alone would rank right.
    ranked_right = max(chosen_longer, 1 - chosen_longer)
    if factor >= LENGTH_RATIO or ranked_right >= LENGTH_ALONE:
        side = "longer" if chosen_longer >= 0.5 else "shorter"
        yield _warning(
            f"chosen is {factor:.1f}× {comparative} on average: length gap; "
            f"of the pairs that differ in length {percent(ranked_right)} "
            f"have the {side} side chosen"
        )
    else:
        yield _good(
            f"no length gap: chosen is {factor:.2f}× {comparative}, "
            f"length alone ranks {percent(ranked_right)} right"
        )


def _likeness(distance: Figures, repeats: Figures) -> Iterator[Verdict]:
    identical = distance["identical_frac"]
    if identical:
        yield _warning(
            f"{percent(identical)} of the pairs have two identical sides",
        )
    near = distance["near_duplicate_frac"]
    if near >= NEAR_DUPLICATES:
        yield _note(
            f"{percent(near)} of the pairs are near-duplicates: "
            "they teach a few words each"
        )
    repeated = repeats["pair"]["repeated_frac"]
    if repeated:
        yield _warning(f"{percent(repeated)} of the pairs come more than once")
    both_sides = repeats["both_sides_frac"]
    # Pairs with identical sides are chosen and rejected by themselves.
    if both_sides > identical:
        yield _warning(
            f"{percent(both_sides)} of the rejected answers are chosen elsewhere "
            "for the same prompt"
        )


def _yes_no(yes_no: Figures) -> Iterator[Verdict]:
    if not yes_no["frac"]:
        return
    says_yes = yes_no["chosen_yes_frac"]
    text = (
        f"{percent(yes_no['frac'])} of the pairs are yes/no answers; "
        f"{percent(says_yes)} of them choose yes"
    )
    if abs(says_yes - 0.5) > YES_BIAS:
        yield _warning(text)
    else:
        yield _note(text)


def _images(images: Figures, num_pairs: int) -> Iterator[Verdict]:
    num_missing = images["num_missing"]
    if num_missing:
        num_uses = images["num_pairs_missing"]
        yield _warning(f"{num_missing:,} image files are missing ({num_uses:,} uses)")
    num_without = images["num_pairs_without"]
    if num_without:
        yield _note(f"{percent(num_without / num_pairs)} of the pairs have no image")
    uses = images["pairs_per_image"]
    if uses and uses["mean"] >= 1.5:
        yield _note(
            f"an image is used {uses['mean']:.1f} times on average, "
            f"{uses['max']:.0f} times at most"
        )


def _on_policy(policy: Figures) -> Iterator[Verdict]:
    if not policy["num_pairs"]:
        yield _warning("the policy can read none of the pairs: see why below")
        return
    chosen = policy["per_token"]["chosen"]["mean"]
    rejected = policy["per_token"]["rejected"]["mean"]
    means = f"per token, in nats: chosen {chosen:.2f}, rejected {rejected:.2f}"
    if abs(chosen - rejected) >= OFF_POLICY:
        side = "chosen" if chosen < rejected else "rejected"
        yield _warning(f"the {side} side is far off-policy ({means})")
    else:
        yield _note(
            f"both sides are about equally likely to the policy ({means})",
        )


def _grounding(grounding: Figures) -> Iterator[Verdict]:
    views = grounding["views"]
    blind_views = [name for name in views if name != "image"]
    if not blind_views:
        yield _note(
            "vision grounding could not be measured: no view without the image",
        )
        return
    for measure, seeing in views["image"].items():

        def accuracy(name: str, measure: str = measure) -> float:
            return float(views[name][measure]["accuracy"])

        # The blind view that ranks best is the strictest comparison.
        best = max(blind_views, key=accuracy)
        yield _gate(
            _BLIND_NAMES[best],
            _MEASURE_NAMES[measure],
            views[best][measure],
            seeing,
        )


def _gate(who: str, scale: str, blind: Figures, seeing: Figures) -> Verdict:
    without, with_image = blind["accuracy"], seeing["accuracy"]
    shares = (
        f"{who} ranks {percent(without)} right by {scale}, "
        f"{percent(with_image)} with the image"
    )
    if without >= BLIND and blind["low"] > 0.5:
        return _warning(f"{shares}: language shortcut")
    if with_image - without < GATE_DROP:
        return _warning(f"{shares}: the image hardly matters to this policy")
    return _good(f"{shares}: the ranking needs the image")
