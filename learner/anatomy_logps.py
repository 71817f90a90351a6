"""What a policy makes of a preference set: log-probs of both sides, and how well it ranks them without seeing.

    image      the pair as it is        blank      a grey image of the same size
    shuffled   another pair's image     no_image   the text alone

A pair is ranked right when the chosen side has the higher log-prob. Pairs that a blind policy ranks right teach
language, not sight; all views are compared over the same pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from common.anatomy import Figures, drop_counts, summary
from common.chat import ChatEncoder
from common.images import ImageStore
from common.records import Dropped, PreferencePair, Response
from common.records import SideLogps as SideLogps
from common.views import ChangeImages, blank_images, shuffled_images, without_images
from learner.collate import Collator, EncodedPair
from learner.policy import Policy

VIEWS = ("image", "blank", "shuffled", "no_image")
MEASURES = ("sum", "per_token")


@dataclass(slots=True)
class Measured:
    """Per view: pair id -> log-probs, and why pairs have none. `unavailable` names views that nothing came of."""

    logps: dict[str, dict[str, SideLogps]] = field(default_factory=dict)
    dropped: dict[str, list[Dropped]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    num_retokenised: int = 0


def measure_views(
    policy: Policy,
    collator: Collator,
    pairs: Sequence[PreferencePair],
    store: ImageStore,
    batch_size: int,
    on_done: Callable[[str, int], None] = lambda view, count: None,
) -> Measured:
    """Log-probs of every pair with its image, and of those that have one in the other views.

    Args:
        store: takes the grey images.
        batch_size: pairs per forward.
        on_done: called with the view and the number of pairs finished since its last call.
    """
    found = Measured()

    def measure(name: str, rows: Sequence[PreferencePair], view: ChangeImages) -> None:
        found.logps[name], found.dropped[name] = {}, []
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            logps, dropped = _view_logps(policy, collator, chunk, view)
            found.logps[name].update(logps)
            found.dropped[name] += dropped
            on_done(name, len(chunk))

    own = [of_policy(pair, collator.encoder) for pair in pairs]
    found.num_retokenised = sum(
        (before.chosen, before.rejected) != (after.chosen, after.rejected)
        for before, after in zip(pairs, own, strict=True)
    )
    measure("image", own, lambda pair: pair)
    seeing = [
        pair for pair in own if pair.prompt.images and pair.id in found.logps["image"]
    ]
    measure("blank", seeing, blank_images(store))
    measure("shuffled", seeing, shuffled_images(seeing))
    try:
        measure("no_image", seeing, without_images)
    except (RuntimeError, TypeError, ValueError) as error:
        # Families differ in whether they run without pixels, and in how they refuse.
        if isinstance(error, torch.OutOfMemoryError):
            raise
        found.logps["no_image"] = {}
        found.unavailable["no_image"] = (
            f"the model refuses a prompt without an image: {error}".splitlines()[0]
        )
    for name in VIEWS:
        if not found.logps[name]:
            found.unavailable.setdefault(
                name, "no pair could be seen so" if seeing else "no pair with an image"
            )
    return found


def of_policy(pair: PreferencePair, encoder: ChatEncoder) -> PreferencePair:
    """The pair as this policy reads it: sampled tokens stay where they are this tokenizer's of the same text."""

    def own(response: Response) -> Response:
        ids = response.token_ids
        if ids is None or (
            max(ids, default=0) < len(encoder.tokenizer)
            and encoder.decode(ids) == response.text
        ):
            return response
        return Response(response.text)

    return replace(
        pair,
        chosen=own(pair.chosen),
        rejected=own(pair.rejected),
        prompt_token_ids=None,
    )


def _view_logps(
    policy: Policy,
    collator: Collator,
    pairs: Sequence[PreferencePair],
    view: ChangeImages,
) -> tuple[dict[str, SideLogps], list[Dropped]]:
    """Log-probs of one batch of pairs by id, and the pairs that have none."""
    encoded: list[EncodedPair] = []
    dropped: list[Dropped] = []
    for pair in pairs:
        seen = view(pair)
        result = (
            Dropped(pair.id, "no_other_image")
            if seen is None
            else collator.encode(seen)
        )
        if isinstance(result, EncodedPair):
            encoded.append(result)
        else:
            dropped.append(result)
    logps = dict(
        zip(
            (pair.pair.id for pair in encoded),
            side_logps(policy, collator, encoded),
            strict=True,
        )
    )
    for pair_id, value in list(logps.items()):
        if not (math.isfinite(value.chosen) and math.isfinite(value.rejected)):
            dropped.append(
                Dropped(pair_id, "logps_not_finite", f"{logps.pop(pair_id)}")
            )
    return logps, dropped


@torch.no_grad()
def side_logps(
    policy: Policy, collator: Collator, pairs: Sequence[EncodedPair]
) -> list[SideLogps]:
    """Log-probs of one batch, on the device and in the type of the policy."""
    if not pairs:
        return []
    weight = next(policy.parameters())
    found = policy(collator.collate(pairs).to(weight.device, weight.dtype))
    sums, lengths = found.summed.tolist(), found.num_tokens.tolist()
    num = len(pairs)
    return [
        SideLogps(*values)
        for values in zip(
            sums[:num], sums[num:], lengths[:num], lengths[num:], strict=True
        )
    ]


def policy_figures(found: Measured) -> Figures:
    """Figures for the page and its JSON; log-probs in nats, `points` per token as [chosen, rejected]."""
    rows = list(found.logps["image"].values())
    figures: Figures = {
        "num_pairs": len(rows),
        "dropped": drop_counts(found.dropped["image"]),
        "num_retokenised": found.num_retokenised,
        "tokens": _sides([(row.chosen_tokens, row.rejected_tokens) for row in rows]),
        **{
            measure: _sides([row.both(measure) for row in rows]) for measure in MEASURES
        },
        "points": [list(row.both("per_token")) for row in rows],
    }
    return {**figures, "grounding": grounding_figures(found)}


def grounding_figures(found: Measured) -> Figures:
    """Share of pairs ranked right per view, over the pairs that every available view has; ties count one half.

    `low` and `high` bound it with 95 % confidence (Wilson 1927).
    """
    views = [name for name in VIEWS if name not in found.unavailable]
    ids = (
        set.intersection(*(set(found.logps[name]) for name in views))
        if len(views) > 1
        else set()
    )
    return {
        "num_pairs": len(ids),
        "views": {
            name: {
                measure: _accuracy(found.logps[name], ids, measure)
                for measure in MEASURES
            }
            for name in views
            if ids
        },
        "unavailable": found.unavailable,
        "dropped": {
            name: drop_counts(found.dropped.get(name, ())) for name in VIEWS[1:]
        },
    }


def _accuracy(logps: Mapping[str, SideLogps], ids: set[str], measure: str) -> Figures:
    right = 0.0
    for pair_id in ids:
        chosen, rejected = logps[pair_id].both(measure)
        right += (chosen > rejected) + (chosen == rejected) / 2
    low, high = wilson(right, len(ids))
    return {"accuracy": right / len(ids), "low": low, "high": high}


def wilson(right: float, num: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of a share `right / num`, num > 0, at the confidence of `z` standard errors."""
    centre = (right + z * z / 2) / (num + z * z)
    half = z / (num + z * z) * math.sqrt(right * (num - right) / num + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def _sides(rows: Sequence[tuple[float, float]]) -> Figures:
    """`gap` is chosen - rejected of the same pair."""
    return {
        "chosen": summary([chosen for chosen, _ in rows]),
        "rejected": summary([rejected for _, rejected in rows]),
        "gap": summary([chosen - rejected for chosen, rejected in rows]),
    }
