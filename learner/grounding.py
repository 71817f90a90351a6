"""The grounding gate: does the preference rest on the picture, or on the words alone?

Implicit-reward accuracy, the share of pairs with β·(log-ratio of chosen - log-ratio of rejected) > 0, three times: with
the pair's own images, with grey ones of the same size, and with those of another pair. A policy whose accuracy
survives without the picture has learned language. A pair without images, or with unreadable ones, is in no view; one
whose images no other pair can replace is not in `shuffled`: every view says how many pairs it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import nn

from common.errors import Refused
from common.images import ImageStore
from common.records import PreferencePair
from common.views import CONDITIONS, blank_images, shuffled_images
from learner.batching import BatchPlan, MicroBatch
from learner.collate import RowBatch
from learner.pair_logps import pair_logps
from learner.ranks import gather
from learner.tree import TreeBatch
from learner.update import Reference


def grounding_metrics(deltas: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Accuracies and numbers of pairs by view, and what the true picture adds over the better of the others.

    Args:
        deltas: `true` and at least one other view -> differences of log-ratios, one per pair. Nothing gives nothing.
    """
    if not deltas:
        return {}
    accuracies = {
        view: sum(d > 0 for d in found) / len(found)
        for view, found in deltas.items()
        if found
    }
    metrics = {
        f"grounding/accuracy_{view}": accuracy for view, accuracy in accuracies.items()
    }
    metrics |= {
        f"grounding/num_pairs_{view}": float(len(deltas.get(view, ())))
        for view in CONDITIONS
    }
    others = [accuracy for view, accuracy in accuracies.items() if view != "true"]
    if "true" in accuracies and others:
        metrics["grounding/gain"] = accuracies["true"] - max(others)
    return metrics


def views(
    pairs: Sequence[PreferencePair], store: ImageStore
) -> dict[str, list[PreferencePair]]:
    """The pairs with images: as they are, `blank` and `shuffled`. Pairs whose images cannot be read stay out.

    Args:
        store: where grey pictures are put.
    """
    blank = blank_images(store)
    own: list[PreferencePair] = []
    greyed: list[PreferencePair | None] = []
    for pair in pairs:
        if pair.prompt.images:
            with suppress(Refused):
                greyed.append(blank(pair))
                own.append(pair)
    shuffled = [*map(shuffled_images(own), own)]
    seen = {
        "true": own,
        "blank": [*filter(None, greyed)],
        "shuffled": [*filter(None, shuffled)],
    }
    return {view: shown for view, shown in seen.items() if shown}


def agreed_views(
    pairs: Sequence[PreferencePair], store: ImageStore, world_size: int
) -> dict[str, list[PreferencePair]]:
    """`views` of the pairs whose images every rank can read: all ranks then run the same forwards (collective)."""
    shown = views(pairs, store)
    readable = gather({pair.id for pair in shown.get("true", ())}, world_size)
    everywhere = set.intersection(*readable)
    if all(ids == everywhere for ids in readable):
        return shown
    return views([pair for pair in pairs if pair.id in everywhere], store)


@torch.no_grad()
def deltas(
    policy: nn.Module,
    reference: Reference,
    plan: BatchPlan,
    collate: Callable[[MicroBatch], RowBatch | TreeBatch],
    world_size: int,
) -> list[float]:
    """Differences of log-ratios, chosen - rejected, of every rank's pairs (collective); the policy without dropout."""
    own: list[float] = []
    policy.eval()
    for micro_batch in plan.micro_batches:
        batch = collate(micro_batch)
        found = pair_logps(policy(batch), reference(batch), micro_batch.pairs).delta
        own += (
            found[: len(micro_batch.pairs) - micro_batch.num_fillers].double().tolist()
        )
    policy.train()
    return [delta for part in gather(own, world_size) for delta in part]
