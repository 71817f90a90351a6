"""The table of detectors: what each watches, what its limit is called, and what it says."""

from __future__ import annotations

import math

from cluster.harm import advice
from cluster.harm.alert import Detector, Metrics
from cluster.harm.judging import Preference
from cluster.harm.shift import (
    Limit,
    Shift,
    Shifted,
    fall,
    growth,
    relative_growth,
    share_lost,
)
from cluster.harm.sight import Blindness
from common.config import RunConfig

NO_DRIFT = 0.0
"""Before the first update the policy is its own reference."""
SAME_LENGTH = 1.0


def detectors_of(config: RunConfig) -> list[Detector]:
    """All detectors of a run."""
    return [
        end_token(config),
        chosen_logp(config),
        length(config),
        cut_off(config),
        diversity(config),
        longer_wins(config),
        first_wins(config),
        blind(config),
    ]


def end_token(config: RunConfig) -> Detector:
    """Policy and reference before the same end of a good answer: the policy goes on more often."""
    help_text = advice.anchored(config)

    def tell(shifted: Shifted) -> str:
        less = 1 - math.exp(-shifted.amount)
        rejected = _figure(shifted.metrics, "drift/rejected_end")
        return (
            f"the policy is {less:.0%} less likely than its reference to end where chosen answers end "
            f"(drift/chosen_end {shifted.now:+.3f} nats{rejected}): answers get longer, and what is added is often "
            f"made up; {help_text}"
        )

    warnings = config.loop.warnings
    limit = Limit(fall, warnings.end_token, begins_at=NO_DRIFT)
    return Shift("end_token", "drift/chosen_end", limit, warnings.window, tell)


def chosen_logp(config: RunConfig) -> Detector:
    """The margin is won by making both sides less likely."""
    help_text = advice.anchored(config)

    def tell(shifted: Shifted) -> str:
        rejected = _figure(shifted.metrics, "drift/rejected")
        margin = _figure(shifted.metrics, "rewards/margins")
        return (
            f"chosen answers get less likely (drift/chosen {shifted.now:+.3f} nats per token{rejected}{margin}): "
            f"what is preferred is unlearnt as well; {help_text}"
        )

    warnings = config.loop.warnings
    limit = Limit(fall, warnings.chosen_logp, begins_at=NO_DRIFT)
    return Shift("chosen_logp", "drift/chosen", limit, warnings.window, tell)


def length(config: RunConfig) -> Detector:
    """Sampled answers grow.

    Of prompts that are drawn by worth the hard ones come more often, so each is compared with itself.
    """
    help_text = advice.anchored(config)
    metric = "completions/mean_length"
    unit = "tokens"
    begins_at = None
    if config.rollout.draw == "by_worth":
        metric = "completions/length_ratio"
        unit = "of the prompt's first answers"
        begins_at = SAME_LENGTH

    def tell(shifted: Shifted) -> str:
        return (
            f"sampled answers have grown by {shifted.amount:.0%} ({metric} {shifted.first:.1f} -> "
            f"{shifted.now:.1f} {unit}); {help_text}"
        )

    warnings = config.loop.warnings
    limit = Limit(relative_growth, warnings.length, begins_at)
    return Shift("length", metric, limit, warnings.window, tell)


def cut_off(config: RunConfig) -> Detector:
    """More answers do not come to an end."""
    help_text = advice.anchored(config)
    most = config.rollout.max_tokens

    def tell(shifted: Shifted) -> str:
        return (
            f"more answers reach rollout.max_tokens = {most} (completions/cut_off_frac {shifted.first:.2f} -> "
            f"{shifted.now:.2f}); raise it if they are right, else {help_text}"
        )

    warnings = config.loop.warnings
    limit = Limit(growth, warnings.cut_off)
    return Shift("cut_off", "completions/cut_off_frac", limit, warnings.window, tell)


def diversity(config: RunConfig) -> Detector:
    """The completions of a group become one text, or texts of the same words."""
    help_text = advice.more_varied(config)

    def tell(shifted: Shifted) -> str:
        texts = _figure(shifted.metrics, "completions/distinct_texts")
        return (
            f"the completions of a group differ {shifted.amount:.0%} less (completions/distinct_bigrams "
            f"{shifted.first:.3f} -> {shifted.now:.3f}{texts}): groups of one text make no pair, and what is never "
            f"sampled is never corrected; {help_text}, or end the run if its answers are right"
        )

    warnings = config.loop.warnings
    limit = Limit(share_lost, warnings.diversity)
    metric = "completions/distinct_bigrams"
    return Shift("diversity", metric, limit, warnings.window, tell)


def longer_wins(config: RunConfig) -> Detector:
    """The judge takes length for quality, unless longer answers are better here."""
    help_text = advice.without_length(config)

    def tell(share: float, num_groups: int) -> str:
        return (
            f"the judge prefers the longer answer in {share:.0%} of {num_groups} groups (judge/longer_wins); "
            f"{help_text}"
        )

    most = config.loop.warnings.longer_wins
    return Preference("longer_wins", "judge/longer_wins", most, tell)


def first_wins(config: RunConfig) -> Detector:
    """The judge prefers a place. Asked in both orders it then contradicts itself, and the group is a tie."""
    help_text = advice.without_place(config)

    def tell(share: float, num_groups: int) -> str:
        place = "first" if share > 0.5 else "second"
        preferred = max(share, 1 - share)
        return (
            f"the judge prefers the answer that it is shown {place}, in {preferred:.0%} of its verdicts on "
            f"{num_groups} groups (judge/first_wins); {help_text}"
        )

    most = config.loop.warnings.first_wins
    return Preference("first_wins", "judge/first_wins", most, tell, both_ways=True)


def blind(config: RunConfig) -> Detector:
    """Implicit rewards rank pairs right without the picture."""
    help_text = advice.with_sight(config)

    def tell(seeing: float, blind: float) -> str:
        return (
            f"the preference needs no picture: implicit rewards are right in {seeing:.0%} of the pairs with the "
            f"picture and in {blind:.0%} with a blank one (grounding/accuracy_true, accuracy_blank); {help_text}, or "
            "look at the pairs with python -m cluster.import_data inspect"
        )

    return Blindness(config.loop.warnings.blind, tell)


def _figure(metrics: Metrics, name: str) -> str:
    """`, NAME +0.123`, or nothing where the step lacks it."""
    if name not in metrics:
        return ""
    return f", {name} {metrics[name]:+.3f}"
