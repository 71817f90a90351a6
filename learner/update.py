"""Forward and backward of one global batch: micro-batches that add up to exactly the gradient of one big batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from common.config import Loss
from common.protocols import TrainEngine
from learner.batching import BatchPlan, MicroBatch
from learner.collate import Collator, EncodedPair, RowBatch
from learner.logps import CompletionLogps
from learner.losses import pair_losses, pair_metrics
from learner.objective import Objective
from learner.pair_logps import PairLogps, each_by_its_own, pair_logps, with_changes
from learner.povid import Dispreferred, Povid

Reference = Callable[..., CompletionLogps]
"""Log-probs of the reference model, called without gradients; arguments as of `Policy.forward`."""

PairTable = dict[str, list[float]]
"""One row per pair that counts: metric name -> values."""


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
            assert isinstance(batch, RowBatch), (
                "learner/fast.py keeps plain rows for this loss"
            )
            tokens = povid.dispreferred(
                micro_batch.pairs, batch, collator, objective, engine.module, reference
            )
        reference_logps = None
        if objective.needs_reference:
            with torch.no_grad():
                reference_logps = reference(batch, alternatives=tokens.reference)
        policy_logps = engine.module(batch, alternatives=tokens.policy)
        configs = [objective.loss(pair.pair) for pair in micro_batch.pairs]
        logps = loss_inputs(policy_logps, reference_logps, micro_batch.pairs, objective)
        figures = each_by_its_own(_figures, logps, configs)
        weights = figures["loss"].new_tensor(
            [
                w * objective.weight(pair.pair)
                for w, pair in zip(micro_batch.weights, micro_batch.pairs, strict=True)
            ]
        )
        share = (figures["loss"] * weights).sum() * (
            engine.world_size / objective.total_weight
        )
        # A loss that is not finite may have a gradient that is: then make it NaN too, so that all ranks skip the step.
        engine.backward(share * torch.where(share.isfinite(), 1.0, torch.nan))
        _note(
            table,
            micro_batch,
            {**figures, "weight": weights, "tokens": logps.num_tokens},
        )
    return table


def loss_inputs(
    policy: CompletionLogps,
    reference: CompletionLogps | None,
    pairs: Sequence[EncodedPair],
    objective: Objective,
) -> PairLogps:
    """Everything that the losses of these pairs read."""
    logps = pair_logps(policy, reference, pairs)
    configs = [objective.loss(pair.pair) for pair in pairs]
    kinds = {config.kind for config in configs}
    advantages = objective.advantages([pair.pair for pair in pairs])
    if advantages is not None:
        logps = replace(logps, advantages=logps.policy_chosen.new_tensor(advantages))
    if "mpo" in kinds:
        logps = replace(
            logps,
            reward_shift=torch.full_like(logps.policy_chosen, objective.reward_shift),
        )
    if "ddpo" in kinds:
        min_matches = [
            config.ddpo_min_match if config.kind == "ddpo" else None
            for config in configs
        ]
        logps = with_changes(logps, policy, reference, pairs, min_matches)
    return logps


def _figures(logps: PairLogps, config: Loss) -> dict[str, torch.Tensor]:
    return {"loss": pair_losses(logps, config), **pair_metrics(logps, config)}


def _note(
    table: PairTable, micro_batch: MicroBatch, columns: Mapping[str, torch.Tensor]
) -> None:
    counted = len(micro_batch.pairs) - micro_batch.num_fillers
    for name, values in columns.items():
        table[name] += values[:counted].detach().double().tolist()


def reduce_table(
    tables: Sequence[PairTable], sources: Sequence[str]
) -> dict[str, float]:
    """Means over all pairs of all ranks, `loss` weighted, `tokens` a sum; each source's count, loss and margin.

    Args:
        tables: one per rank.
        sources: `PreferencePair.source` of every pair, in the order of the tables' rows.
    """
    columns = {
        name: [value for table in tables for value in table.get(name, [])]
        for name in tables[0] or {}
    }
    columns = {name: values for name, values in columns.items() if values}
    weights = columns.pop("weight")
    metrics = {name: sum(values) / len(values) for name, values in columns.items()}
    metrics["tokens"] = sum(columns.get("tokens", []))
    metrics["loss"] = sum(
        w * loss for w, loss in zip(weights, columns["loss"], strict=True)
    ) / sum(weights)
    for source in sorted(set(sources)):
        places = [place for place, name in enumerate(sources) if name == source]
        metrics[f"pairs/{source}"] = float(len(places))
        for name in ("loss", "rewards/margins"):
            metrics[f"{name}/{source}"] = sum(
                columns[name][place] for place in places
            ) / len(places)
    return metrics
