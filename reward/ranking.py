"""From a group and its verdict to one preference pair: the best completion against the worst.

Of equally scored completions one is drawn by a hash of group id and tokens: the same on every machine and in any order
of the completions, and blind to length. What makes no honest pair is dropped, with a reason:

    bad_verdict   a score is missing, too many, or not finite
    identical     all completions, or best and worst, say the same
    tie           best and worst are closer than `min_margin`
"""

from __future__ import annotations

import math

from common.records import (
    Completion,
    Dropped,
    PreferencePair,
    Response,
    RolloutGroup,
    Verdict,
)
from common.seeding import derive_seed
from common.sources import ONLINE


def check_verdict(group: RolloutGroup, verdict: Verdict) -> Dropped | None:
    """None for a verdict with one finite score per completion, else why it cannot be used."""
    num = len(group.completions)
    scores = verdict.scores if isinstance(verdict, Verdict) else None
    if scores is not None and len(scores) == num and all(map(_is_finite, scores)):
        return None
    return Dropped(
        group.id,
        "bad_verdict",
        f"expected {num} finite scores, got {verdict!r:.200}; repair the judge",
    )


def rank(
    group: RolloutGroup, verdict: Verdict, min_margin: float
) -> PreferencePair | Dropped:
    """The pair of a group, or why there is none. A score difference of exactly `min_margin` makes a pair, 0 never."""
    if (bad := check_verdict(group, verdict)) is not None:
        return bad
    if len({completion.text.strip() for completion in group.completions}) < 2:
        return Dropped(
            group.id, "identical", f"{len(group.completions)} completions, one text"
        )
    best, worst = max(verdict.scores), min(verdict.scores)
    if best == worst or best - worst < min_margin:
        return Dropped(
            group.id, "tie", f"scores {worst:g} to {best:g}, margin {min_margin:g}"
        )
    chosen, rejected = _draw(group, verdict, best), _draw(group, verdict, worst)
    if chosen.text.strip() == rejected.text.strip():
        return Dropped(group.id, "identical", "best and worst say the same")
    return pair_of(group, group.id, ONLINE, (chosen, best), (rejected, worst))


def pair_of(
    group: RolloutGroup,
    id: str,
    source: str,
    better: tuple[Completion, float],
    worse: tuple[Completion, float],
) -> PreferencePair:
    """Two completions of a group with their scores as a pair, as old as its oldest token."""
    (chosen, high), (rejected, low) = better, worse
    return PreferencePair(
        id=id,
        prompt=group.prompt,
        chosen=Response(chosen.text, chosen.token_ids),
        rejected=Response(rejected.text, rejected.token_ids),
        source=source,
        weight_version=min(chosen.min_weight_version, rejected.min_weight_version),
        prompt_token_ids=group.prompt_token_ids,
        scores=(high, low),
    )


def _draw(group: RolloutGroup, verdict: Verdict, score: float) -> Completion:
    drawn = [
        c for c, s in zip(group.completions, verdict.scores, strict=True) if s == score
    ]
    # Equal tokens can differ in weight versions only; the oldest one stands for all, so that staleness is never hidden.
    return min(
        drawn, key=lambda c: (derive_seed(group.id, *c.token_ids), c.min_weight_version)
    )


def _is_finite(score: object) -> bool:
    return isinstance(score, (int, float)) and math.isfinite(score)
