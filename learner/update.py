"""Forward and backward of one global batch: micro-batches that add up to exactly the gradient of one big batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from common.config import Loss
from common.protocols import TrainEngine
from learner.batching import BatchPlan, MicroBatch
from learner.collate import Collator, RowBatch
from learner.logps import CompletionLogps
from learner.losses import PairLogps, each_by_its_own, pair_losses, pair_metrics
from learner.objective import Objective
from learner.povid import Dispreferred, Povid

Reference = Callable[..., CompletionLogps]
"""Log-probs of the reference model, called without gradients; arguments as of `Policy.forward`."""

PairTable = dict[str, list[float]]
"""One row per pair that counts: metric name -> values."""


def pair_logps(policy: CompletionLogps, reference: CompletionLogps) -> PairLogps:
    """Halves of the rows as pairs: chosen rows first, then rejected ones."""
    chosen, rejected = policy.summed.chunk(2)
    ref_chosen, ref_rejected = reference.summed.chunk(2)
    chosen_lengths, rejected_lengths = policy.num_tokens.chunk(2)
    logps = PairLogps(chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths)
    if policy.alternatives is None or reference.alternatives is None:
        return logps
    noise, ref_noise = (each.sum(1).chunk(2)[0] for each in (policy.alternatives, reference.alternatives))
    return replace(logps, policy_noise=noise, ref_noise=ref_noise)


def accumulate(
    engine: TrainEngine,
    reference: Reference,
    collator: Collator,
    plan: BatchPlan,
    objective: Objective,
    device: torch.device,
    dtype: torch.dtype,
    povid: Povid | None = None,
) -> PairTable:
    """Add up the gradient of the global batch's weighted mean; engines average over ranks, hence `world_size`.

    Returns:
        loss, weight, tokens and metrics of this rank's pairs.
    """
    table: PairTable = defaultdict(list)
    for micro_batch in plan.micro_batches:
        batch = collator.batch(micro_batch.pairs).to(device, dtype)
        tokens = Dispreferred(None, None)
        if povid is not None:
            assert isinstance(batch, RowBatch), "learner/fast.py keeps plain rows for this loss"
            tokens = povid.dispreferred(micro_batch.pairs, batch, collator, objective, engine.module, reference)
        with torch.no_grad():
            reference_logps = reference(batch, alternatives=tokens.reference)
        logps = pair_logps(engine.module(batch, alternatives=tokens.policy), reference_logps)
        advantages = objective.advantages([pair.pair for pair in micro_batch.pairs])
        if advantages is not None:
            logps = replace(logps, advantages=logps.policy_chosen.new_tensor(advantages))
        configs = [objective.loss(pair.pair) for pair in micro_batch.pairs]
        figures = each_by_its_own(_figures, logps, configs)
        weights = figures["loss"].new_tensor(
            [w * objective.weight(pair.pair) for w, pair in zip(micro_batch.weights, micro_batch.pairs, strict=True)]
        )
        engine.backward((figures["loss"] * weights).sum() * (engine.world_size / objective.total_weight))
        _note(table, micro_batch, {**figures, "weight": weights, "tokens": logps.num_tokens})
    return table


def _figures(logps: PairLogps, config: Loss) -> dict[str, torch.Tensor]:
    return {"loss": pair_losses(logps, config), **pair_metrics(logps, config)}


def _note(table: PairTable, micro_batch: MicroBatch, columns: Mapping[str, torch.Tensor]) -> None:
    counted = len(micro_batch.pairs) - micro_batch.num_fillers
    for name, values in columns.items():
        table[name] += values[:counted].detach().double().tolist()


def reduce_table(tables: Sequence[PairTable], sources: Sequence[str]) -> dict[str, float]:
    """Means over all pairs of all ranks, `loss` weighted, `tokens` a sum; each source's count, loss and margin.

    Args:
        tables: one per rank.
        sources: `PreferencePair.source` of every pair, in the order of the tables' rows.
    """
    columns = {name: [value for table in tables for value in table.get(name, [])] for name in tables[0] or {}}
    columns = {name: values for name, values in columns.items() if values}
    weights = columns.pop("weight")
    metrics = {name: sum(values) / len(values) for name, values in columns.items()}
    metrics["tokens"] = sum(columns.get("tokens", []))
    metrics["loss"] = sum(w * loss for w, loss in zip(weights, columns["loss"], strict=True)) / sum(weights)
    for source in sorted(set(sources)):
        places = [place for place, name in enumerate(sources) if name == source]
        metrics[f"pairs/{source}"] = float(len(places))
        for name in ("loss", "rewards/margins"):
            metrics[f"{name}/{source}"] = sum(columns[name][place] for place in places) / len(places)
    return metrics
