"""The grounding gate: does the preference rest on the picture, or on the words alone?

Implicit-reward accuracy, the share of pairs with β·(log-ratio of chosen - log-ratio of rejected) > 0, under three image
conditions: the pair's own images, grey ones of the same size, and those of another pair. A policy whose accuracy
survives without the picture has learned language. A pair without images, or with unreadable ones, is in no condition;
one whose images no other pair can replace is not in `shuffled`. Every condition says how many pairs it counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch

from common.data.image_conditions import CONDITIONS, blank_images, shuffled_images
from common.data.images import ImageStore
from common.errors import Refused
from common.records import PreferencePair
from learner.batch.plan import BatchPlan
from learner.engines.ranks import gather
from learner.losses.pair_logps import pair_logps
from learner.model.models import Models


def grounding_metrics(deltas: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Accuracies and numbers of pairs by image condition, and what the true picture adds over the better of the others.

    Return an empty dict when no pair has an image.

    Args:
        deltas: condition (`true` and at least one other) -> differences of log-ratios, one per pair.
    """
    if not deltas:
        return {}
    metrics: dict[str, float] = {}
    accuracies: dict[str, float] = {}
    for view, values in deltas.items():
        # A condition without a pair has no accuracy, and 0 would be made up.
        if values:
            num_right = sum(value > 0 for value in values)
            accuracies[view] = num_right / len(values)
            metrics[f"grounding/accuracy_{view}"] = accuracies[view]
    for view in CONDITIONS:
        num_pairs = len(deltas.get(view, ()))
        metrics[f"grounding/num_pairs_{view}"] = float(num_pairs)
    without_picture = [accuracies[view] for view in accuracies if view != "true"]
    if "true" in accuracies and without_picture:
        metrics["grounding/gain"] = accuracies["true"] - max(without_picture)
    return metrics


def under_conditions(
    pairs: Sequence[PreferencePair],
    store: ImageStore,
) -> dict[str, list[PreferencePair]]:
    """The pairs whose images can be read, under each image condition; conditions without a pair are left out.

    Args:
        store: where grey pictures are put.
    """
    to_blank = blank_images(store)
    readable: list[PreferencePair] = []
    blank: list[PreferencePair] = []
    for pair in pairs:
        if not pair.prompt.images:
            continue
        try:
            greyed = to_blank(pair)
        except Refused:
            continue
        readable.append(pair)
        if greyed is not None:
            blank.append(greyed)
    # Only readable pictures are swapped: a pair must not get one that cannot be opened.
    to_shuffled = shuffled_images(readable)
    shuffled: list[PreferencePair] = []
    for pair in readable:
        swapped = to_shuffled(pair)
        if swapped is not None:
            shuffled.append(swapped)
    shown = {"true": readable, "blank": blank, "shuffled": shuffled}
    for view in CONDITIONS:
        if not shown[view]:
            del shown[view]
    return shown


def agreed_conditions(
    pairs: Sequence[PreferencePair],
    store: ImageStore,
    world_size: int,
) -> dict[str, list[PreferencePair]]:
    """`under_conditions` of the pairs whose images every rank can read: then all run the same forwards (collective)."""
    # A file may be missing on one node alone.
    shown = under_conditions(pairs, store)
    readable_here = {pair.id for pair in shown.get("true", ())}
    readable_by_rank = gather(readable_here, world_size)
    readable_everywhere = set.intersection(*readable_by_rank)
    if all(readable == readable_everywhere for readable in readable_by_rank):
        return shown
    agreed = [pair for pair in pairs if pair.id in readable_everywhere]
    return under_conditions(agreed, store)


@torch.no_grad()
def deltas(models: Models, plan: BatchPlan) -> list[float]:
    """Differences of log-ratios, chosen - rejected, of every rank's pairs (collective); the policy without dropout."""
    policy = models.engine.module
    deltas_of_rank: list[float] = []
    policy.eval()
    for micro_batch in plan.micro_batches:
        batch = models.collate(micro_batch.pairs)
        policy_logps = policy(batch)
        reference_logps = models.reference(batch)
        logps = pair_logps(policy_logps, reference_logps, micro_batch.pairs)
        # Fillers stand at the end of a micro-batch.
        num_counted = len(micro_batch.counted)
        counted = logps.delta[:num_counted]
        deltas_of_rank += counted.double().tolist()
    policy.train()
    deltas_by_rank = gather(deltas_of_rank, models.engine.world_size)
    return list(chain.from_iterable(deltas_by_rank))
