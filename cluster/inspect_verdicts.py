"""One line for each thing that one should know about a preference set before training on it.

Each verdict follows from the figures alone. The limits are ours: where the effect is plain, not where it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from common.anatomy import Figures

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
    """`warning` asks for a decision, `note` is good to know, `good` is a danger looked for and not found."""

    level: Literal["warning", "note", "good"]
    text: str


def verdicts(figures: Figures) -> list[Verdict]:
    """What the figures of `cluster.inspect_job` say, warnings first."""
    if not figures["num_pairs"]:
        return [Verdict("warning", "empty set: there is no pair to learn from")]
    found = [
        *_rows(figures),
        *_lengths(figures["length"]),
        *_likeness(figures),
        *_images(figures),
    ]
    if figures["policy"]:
        found += [
            *_on_policy(figures["policy"]),
            *_grounding(figures["policy"]["grounding"]),
        ]
    return sorted(
        found, key=lambda verdict: ("warning", "note", "good").index(verdict.level)
    )


def percent(value: float | None) -> str:
    """A share for people; – for None."""
    if value is None:
        return "–"
    return (
        f"{value:.0%}" if value in (0, 1) or 0.01 <= value <= 0.99 else f"{value:.1%}"
    )


def _rows(figures: Figures) -> Iterator[Verdict]:
    unread = sum(figures["dropped_reading"].values())
    if unread:
        yield Verdict(
            "warning",
            f"{unread:,} of {figures['num_rows_read']:,} rows are no pair and were left out",
        )
    wrong = figures["scores"]["not_higher"]
    if wrong:
        yield Verdict(
            "warning",
            f"{wrong:,} pairs whose chosen side has no higher score than the rejected one",
        )


def _lengths(length: Figures) -> Iterator[Verdict]:
    if length["num_empty"]:
        yield Verdict(
            "warning", f"{length['num_empty']:,} pairs have a side without a word"
        )
    ratio, alone = length["ratio"], length["chosen_longer_frac"]
    if ratio is None or alone is None:
        return
    longer, times = (
        ("longer", ratio)
        if ratio >= 1
        else ("shorter", 1 / ratio if ratio else float("inf"))
    )
    right = max(alone, 1 - alone)
    if times >= LENGTH_RATIO or right >= LENGTH_ALONE:
        side = "longer" if alone >= 0.5 else "shorter"
        yield Verdict(
            "warning",
            f"chosen is {times:.1f}× {longer} on average: length gap; "
            f"of the pairs that differ in length {percent(right)} have the {side} side chosen",
        )
    else:
        yield Verdict(
            "good",
            f"no length gap: chosen is {times:.2f}× {longer}, length alone ranks {percent(right)} right",
        )


def _likeness(figures: Figures) -> Iterator[Verdict]:
    distance, repeats, yes_no = (
        figures["distance"],
        figures["repeats"],
        figures["yes_no"],
    )
    if distance["identical_frac"]:
        yield Verdict(
            "warning",
            f"{percent(distance['identical_frac'])} of the pairs have two identical sides",
        )
    if distance["near_duplicate_frac"] >= NEAR_DUPLICATES:
        yield Verdict(
            "note",
            f"{percent(distance['near_duplicate_frac'])} of the pairs are near-duplicates: they teach a few words each",
        )
    if repeats["pair"]["repeated_frac"]:
        yield Verdict(
            "warning",
            f"{percent(repeats['pair']['repeated_frac'])} of the pairs come more than once",
        )
    both = repeats["both_sides_frac"]
    if both > distance["identical_frac"]:
        yield Verdict(
            "warning",
            f"{percent(both)} of the rejected answers are chosen elsewhere for the same prompt",
        )
    if yes_no["frac"]:
        says_yes = yes_no["chosen_yes_frac"]
        level: Literal["warning", "note"] = (
            "warning" if abs(says_yes - 0.5) > YES_BIAS else "note"
        )
        yield Verdict(
            level,
            f"{percent(yes_no['frac'])} of the pairs are yes/no answers; {percent(says_yes)} of them choose yes",
        )


def _images(figures: Figures) -> Iterator[Verdict]:
    images, num = figures["images"], figures["num_pairs"]
    if images["num_missing"]:
        yield Verdict(
            "warning",
            f"{images['num_missing']:,} image files are missing ({images['num_pairs_missing']:,} uses)",
        )
    if images["num_pairs_without"]:
        yield Verdict(
            "note",
            f"{percent(images['num_pairs_without'] / num)} of the pairs have no image",
        )
    used = images["pairs_per_image"]
    if used and used["mean"] >= 1.5:
        yield Verdict(
            "note",
            f"an image is used {used['mean']:.1f} times on average, {used['max']:.0f} times at most",
        )


def _on_policy(policy: Figures) -> Iterator[Verdict]:
    if not policy["num_pairs"]:
        yield Verdict("warning", "the policy can read none of the pairs: see why below")
        return
    chosen, rejected = (
        policy["per_token"]["chosen"]["mean"],
        policy["per_token"]["rejected"]["mean"],
    )
    what = f"per token, in nats: chosen {chosen:.2f}, rejected {rejected:.2f}"
    if abs(chosen - rejected) >= OFF_POLICY:
        side = "chosen" if chosen < rejected else "rejected"
        yield Verdict("warning", f"the {side} side is far off-policy ({what})")
    else:
        yield Verdict(
            "note", f"both sides are about equally likely to the policy ({what})"
        )


def _grounding(grounding: Figures) -> Iterator[Verdict]:
    views = grounding["views"]
    blind = {name: view for name, view in views.items() if name != "image"}
    if not blind:
        yield Verdict(
            "note", "vision grounding could not be measured: no view without the image"
        )
        return
    for measure, seeing in views["image"].items():
        name = max(blind, key=lambda view: blind[view][measure]["accuracy"])
        yield _gate(
            _BLIND_NAMES[name], _MEASURE_NAMES[measure], blind[name][measure], seeing
        )


def _gate(who: str, scale: str, worst: Figures, seeing: Figures) -> Verdict:
    told = f"{who} ranks {percent(worst['accuracy'])} right by {scale}, {percent(seeing['accuracy'])} with the image"
    if worst["accuracy"] >= BLIND and worst["low"] > 0.5:
        return Verdict("warning", f"{told}: language shortcut")
    if seeing["accuracy"] - worst["accuracy"] < GATE_DROP:
        return Verdict("warning", f"{told}: the image hardly matters to this policy")
    return Verdict("good", f"{told}: the ranking needs the image")
