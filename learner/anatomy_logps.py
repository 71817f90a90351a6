"""A policy's log-probs of both sides of a preference set, and how well it ranks them under four image conditions.

    image      the pair as it is        blank      a grey image of the same size
    shuffled   another pair's image     no_image   the text alone

A pair is ranked right when the chosen side has the higher log-prob. Pairs that are ranked right without their image
teach language, not sight. All conditions are compared over the same pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from common.chat import ChatEncoder
from common.data.anatomy import Figures, drop_counts, summary
from common.data.image_conditions import (
    ChangeImages,
    blank_images,
    shuffled_images,
    without_images,
)
from common.data.images import ImageStore
from common.errors import Refused
from common.records import Dropped, PreferencePair, Response
from common.records import SideLogps as SideLogps
from learner.batch.collate import Collator, EncodedPair
from learner.batch.plan import encode_row
from learner.model.policy import Policy

CONDITIONS = ("image", "blank", "shuffled", "no_image")
MEASURES = ("sum", "per_token")


@dataclass(slots=True)
class Measured:
    """Per image condition: pair id -> log-probs, and why pairs have none.

    `unavailable` says why conditions have no log-probs at all. `num_retokenised` counts pairs whose sampled tokens are
    not this policy's.
    """

    logps: dict[str, dict[str, SideLogps]] = field(default_factory=dict)
    dropped: dict[str, list[Dropped]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    num_retokenised: int = 0


def measure_conditions(
    policy: Policy,
    collator: Collator,
    pairs: Sequence[PreferencePair],
    store: ImageStore,
    batch_size: int,
    on_done: Callable[[str, int], None] = lambda view, count: None,
) -> Measured:
    """Log-probs of every pair with its image, and of those that have one under the other image conditions.

    Args:
        store: takes the grey images.
        batch_size: pairs per forward.
        on_done: called with the condition and the number of pairs finished since its last call.
    """
    measured = Measured()

    def measure(name: str, rows: Sequence[PreferencePair], view: ChangeImages) -> None:
        measured.logps[name], measured.dropped[name] = {}, []
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            logps, dropped = _condition_logps(policy, collator, chunk, view)
            measured.logps[name].update(logps)
            measured.dropped[name] += dropped
            on_done(name, len(chunk))

    tokenised = [of_policy(pair, collator.encoder) for pair in pairs]
    for before, after in zip(pairs, tokenised, strict=True):
        same_chosen = before.chosen == after.chosen
        same_rejected = before.rejected == after.rejected
        measured.num_retokenised += not (same_chosen and same_rejected)
    measure("image", tokenised, lambda pair: pair)
    usable = measured.logps["image"]
    with_image = [
        pair for pair in tokenised if pair.prompt.images and pair.id in usable
    ]
    # Other conditions are only asked of pairs that have a result under their own image.
    measure("blank", with_image, blank_images(store))
    measure("shuffled", with_image, shuffled_images(with_image))
    try:
        measure("no_image", with_image, without_images)
    except (RuntimeError, TypeError, ValueError) as error:
        # Families differ in whether they run without pixels, and in how they refuse.
        if isinstance(error, torch.OutOfMemoryError):
            raise
        measured.logps["no_image"] = {}
        reason = f"the model refuses a prompt without an image: {error}"
        measured.unavailable["no_image"] = reason.splitlines()[0]
    reason = "no pair could be seen so" if with_image else "no pair with an image"
    for name in CONDITIONS:
        if not measured.logps[name]:
            measured.unavailable.setdefault(name, reason)
    return measured


def of_policy(pair: PreferencePair, encoder: ChatEncoder) -> PreferencePair:
    """The pair as this policy reads it.

    Sampled ids are kept only if its tokenizer decodes them to the same text. An end mark that is written out behind an
    answer is taken off: the encoder ends answers itself.
    """
    return replace(
        pair,
        chosen=_of_tokenizer(pair.chosen, encoder),
        rejected=_of_tokenizer(pair.rejected, encoder),
        prompt_token_ids=None,
    )


def _of_tokenizer(response: Response, encoder: ChatEncoder) -> Response:
    ids = response.token_ids
    if ids is None:
        return Response(encoder.without_end_mark(response.text))
    # Ids of another vocabulary cannot be decoded at all.
    in_vocabulary = min(ids, default=0) >= 0 and max(ids, default=0) < len(
        encoder.tokenizer
    )
    if in_vocabulary and encoder.decode(ids) == response.text:
        return response
    return Response(encoder.without_end_mark(response.text))


def _condition_logps(
    policy: Policy,
    collator: Collator,
    pairs: Sequence[PreferencePair],
    view: ChangeImages,
) -> tuple[dict[str, SideLogps], list[Dropped]]:
    """Log-probs of one batch of pairs by id, and the pairs that have none."""
    encoded: list[EncodedPair] = []
    dropped: list[Dropped] = []
    for pair in pairs:
        try:
            seen = view(pair)
        except Refused as error:
            # A picture may go missing between two views.
            dropped.append(Dropped(pair.id, error.reason, str(error)))
            continue
        if seen is None:
            dropped.append(Dropped(pair.id, "no_other_image"))
            continue
        result = encode_row(seen, collator)
        if isinstance(result, EncodedPair):
            encoded.append(result)
        else:
            dropped.append(result)
    logps: dict[str, SideLogps] = {}
    sides = side_logps(policy, collator, encoded)
    for encoded_pair, side in zip(encoded, sides, strict=True):
        pair_id = encoded_pair.pair.id
        if math.isfinite(side.chosen) and math.isfinite(side.rejected):
            logps[pair_id] = side
        else:
            dropped.append(Dropped(pair_id, "logps_not_finite", f"{side}"))
    return logps, dropped


@torch.no_grad()
def side_logps(
    policy: Policy, collator: Collator, pairs: Sequence[EncodedPair]
) -> list[SideLogps]:
    """Log-probs of one batch, on the device and in the type of the policy."""
    if not pairs:
        return []
    weight = next(policy.parameters())
    batch = collator.collate(pairs).to(weight.device, weight.dtype)
    logps = policy(batch)
    sums, lengths = logps.summed.tolist(), logps.num_tokens.tolist()
    num = len(pairs)
    sides: list[SideLogps] = []
    for chosen in range(num):
        rejected = num + chosen
        side = SideLogps(
            sums[chosen], sums[rejected], lengths[chosen], lengths[rejected]
        )
        sides.append(side)
    return sides


def policy_figures(measured: Measured) -> Figures:
    """Figures for the page and its JSON; log-probs in nats, `points` per token as [chosen, rejected]."""
    rows = list(measured.logps["image"].values())
    lengths = [(row.chosen_tokens, row.rejected_tokens) for row in rows]
    figures: Figures = {
        "num_pairs": len(rows),
        "dropped": drop_counts(measured.dropped["image"]),
        "num_retokenised": measured.num_retokenised,
        "tokens": _sides(lengths),
    }
    for measure in MEASURES:
        figures[measure] = _sides([row.both(measure) for row in rows])
    figures["points"] = [list(row.both("per_token")) for row in rows]
    figures["grounding"] = grounding_figures(measured)
    return figures


def grounding_figures(measured: Measured) -> Figures:
    """Share of pairs ranked right per image condition, over the pairs that every available one has; ties count half.

    `low` and `high` bound it with 95 % confidence (Wilson 1927).
    """
    # Conditions are comparable over the same pairs alone.
    available = [name for name in CONDITIONS if name not in measured.unavailable]
    ids: set[str] = set()
    if len(available) > 1:
        ids = set(measured.logps[available[0]])
        for name in available[1:]:
            ids &= set(measured.logps[name])
    views: Figures = {}
    for name in available if ids else ():
        views[name] = {
            measure: _accuracy(measured.logps[name], ids, measure)
            for measure in MEASURES
        }
    dropped: Figures = {}
    for name in CONDITIONS[1:]:
        dropped[name] = drop_counts(measured.dropped.get(name, ()))
    return {
        "num_pairs": len(ids),
        "views": views,
        "unavailable": measured.unavailable,
        "dropped": dropped,
    }


def _accuracy(logps: Mapping[str, SideLogps], ids: set[str], measure: str) -> Figures:
    num_right = 0.0
    for pair_id in ids:
        chosen, rejected = logps[pair_id].both(measure)
        num_right += (chosen > rejected) + (chosen == rejected) / 2
    low, high = wilson(num_right, len(ids))
    return {"accuracy": num_right / len(ids), "low": low, "high": high}


def wilson(right: float, num: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of a share `right / num`, num > 0, at the confidence of `z` standard errors."""
    # Wilson's interval stays within 0 and 1, also for a few pairs.
    total = num + z * z
    centre = (right + z * z / 2) / total
    variance = right * (num - right) / num
    half_width = z / total * math.sqrt(variance + z * z / 4)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def _sides(rows: Sequence[tuple[float, float]]) -> Figures:
    """`gap` is chosen - rejected of the same pair."""
    return {
        "chosen": summary([chosen for chosen, _ in rows]),
        "rejected": summary([rejected for _, rejected in rows]),
        "gap": summary([chosen - rejected for chosen, rejected in rows]),
    }
