"""From a group and its verdict to one preference pair: the best completion against the worst.

Of equally scored completions one is drawn by a hash of group id and tokens: the draw is the same on every machine and
in any order of the completions, and does not look at length. A group that makes no honest pair is dropped:

    bad_verdict   a score is missing, too many, or not finite
    identical     all completions, or best and worst, have the same text
    tie           best and worst are closer than `min_margin`
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.end_marks import without_end_mark
from common.records import (
    Completion,
    Dropped,
    Judged,
    PreferencePair,
    Response,
    RolloutGroup,
    Verdict,
)
from common.seeding import derive_seed
from common.sources import ONLINE


def check_verdict(group: RolloutGroup, verdict: Verdict) -> Dropped | None:
    """None for a verdict with one finite score per completion, else why it cannot be used.

    What it says of places, where it says anything, must be a share.
    """
    num_completions = len(group.completions)
    if _has_scores(verdict, num_completions) and _is_share(verdict.first_wins):
        return None
    return Dropped(
        group.id,
        "bad_verdict",
        f"expected {num_completions} finite scores, and first_wins None or from 0 to 1, got {verdict!r:.200}; "
        "repair the judge",
    )


def _has_scores(verdict: object, num_completions: int) -> bool:
    # A judge may be anybody's class: what it returns is not trusted to be a Verdict.
    if not isinstance(verdict, Verdict):
        return False
    if len(verdict.scores) != num_completions:
        return False
    return all(map(_is_finite, verdict.scores))


def _is_share(share: object) -> bool:
    if share is None:
        return True
    return isinstance(share, (int, float)) and 0 <= share <= 1


def _is_finite(score: object) -> bool:
    return isinstance(score, (int, float)) and math.isfinite(score)


def best_against_worst(
    group: RolloutGroup, verdict: Verdict, min_margin: float
) -> Judged:
    """The pair of a group, or why there is none.

    A score difference of exactly `min_margin` makes a pair. Equal scores never do, even when `min_margin` is 0.
    """
    dropped = check_verdict(group, verdict)
    if dropped is not None:
        return Judged(group.id, dropped=dropped)
    dropped = _same_text(group) or _tie(group, verdict, min_margin)
    if dropped is not None:
        return Judged(group.id, dropped=dropped, verdict=verdict)
    scores = verdict.scores
    best = _draw(group, scores, max(scores))
    worst = _draw(group, scores, min(scores))
    # A judge may give one text two scores, for instance when it is noisy.
    if _text(group, best) == _text(group, worst):
        dropped = Dropped(group.id, "identical", "best and worst say the same")
        return Judged(group.id, dropped=dropped, verdict=verdict)
    pair = pair_of(
        group,
        id=group.id,
        source=ONLINE,
        better=best,
        worse=worst,
        scores=(scores[best], scores[worst]),
    )
    return Judged(
        group.id,
        pairs=(pair,),
        verdict=verdict,
        chosen=(best,),
        rejected=(worst,),
    )


def pair_of(
    group: RolloutGroup,
    id: str,
    source: str,
    better: int,
    worse: int,
    scores: tuple[float, float],
) -> PreferencePair:
    """Two completions of a group, by index, as a pair that is as old as its oldest token."""
    chosen = group.completions[better]
    rejected = group.completions[worse]
    oldest_version = min(chosen.min_weight_version, rejected.min_weight_version)
    return PreferencePair(
        id=id,
        prompt=group.prompt,
        chosen=_response(chosen),
        rejected=_response(rejected),
        source=source,
        weight_version=oldest_version,
        prompt_token_ids=group.prompt_token_ids,
        scores=scores,
    )


def _response(completion: Completion) -> Response:
    return Response(completion.text, completion.token_ids, completion.token_logprobs)


def _same_text(group: RolloutGroup) -> Dropped | None:
    num_completions = len(group.completions)
    texts = {_text(group, index) for index in range(num_completions)}
    if len(texts) > 1:
        return None
    return Dropped(group.id, "identical", f"{num_completions} completions, one text")


def _tie(group: RolloutGroup, verdict: Verdict, min_margin: float) -> Dropped | None:
    best = max(verdict.scores)
    worst = min(verdict.scores)
    if best > worst and best - worst >= min_margin:
        return None
    detail = f"scores {worst:g} to {best:g}, margin {min_margin:g}"
    return Dropped(group.id, "tie", detail)


def _draw(group: RolloutGroup, scores: Sequence[float], wanted: float) -> int:
    """The index of one completion with the wanted score."""

    def key(index: int) -> tuple[int, int]:
        completion = group.completions[index]
        draw = derive_seed(group.id, *completion.token_ids)
        # Equal tokens can differ in weight versions only; the oldest one stands for
        # all of them, so that staleness is never hidden.
        return draw, completion.min_weight_version

    candidates: list[int] = []
    for index, score in enumerate(scores):
        if score == wanted:
            candidates.append(index)
    return min(candidates, key=key)


def _text(group: RolloutGroup, index: int) -> str:
    # A policy may write out an end mark, in letters that are no token of that name.
    return without_end_mark(group.completions[index].text).strip()
