"""Forward and backward of one global batch: micro-batches that add up to exactly the gradient of one big batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from common.config import Loss
from common.protocols import TrainEngine
from learner.batching import BatchPlan, MicroBatch
from learner.collate import Collator, RowBatch
from learner.logps import CompletionLogps
from learner.losses import PairLogps, pair_losses, pair_metrics

Reference = Callable[[RowBatch], CompletionLogps]
"""Log-probs of the reference model, called without gradients."""

PairTable = dict[str, list[float]]
"""One row per pair that counts: metric name -> values."""


def pair_logps(policy: CompletionLogps, reference: CompletionLogps) -> PairLogps:
    """Halves of the rows as pairs: chosen rows first, then rejected ones."""
    chosen, rejected = policy.summed.chunk(2)
    ref_chosen, ref_rejected = reference.summed.chunk(2)
    chosen_lengths, rejected_lengths = policy.num_tokens.chunk(2)
    return PairLogps(chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths)


def accumulate(
    engine: TrainEngine,
    reference: Reference,
    collator: Collator,
    plan: BatchPlan,
    config: Loss,
    device: torch.device,
    dtype: torch.dtype,
) -> PairTable:
    """Add up the gradient of the mean loss over the global batch; engines average over ranks, hence `world_size`.

    Returns:
        loss, tokens and metrics of this rank's pairs.
    """
    table: PairTable = defaultdict(list)
    for micro_batch in plan.micro_batches:
        batch = collator.collate(micro_batch.pairs).to(device, dtype)
        with torch.no_grad():
            reference_logps = reference(batch)
        logps = pair_logps(engine.module(batch), reference_logps)
        losses = pair_losses(logps, config)
        weights = torch.tensor(micro_batch.weights, device=losses.device, dtype=losses.dtype)
        engine.backward((losses * weights).sum() * (engine.world_size / plan.num_pairs))
        _note(table, micro_batch, losses, logps, config)
    return table


def _note(table: PairTable, micro_batch: MicroBatch, losses: torch.Tensor, logps: PairLogps, config: Loss) -> None:
    columns = {
        "loss": losses.detach(),
        "tokens": (logps.chosen_lengths + logps.rejected_lengths),
        **pair_metrics(logps, config),
    }
    counted = len(micro_batch.pairs) - micro_batch.num_fillers
    for name, values in columns.items():
        table[name] += values[:counted].double().tolist()


def reduce_table(tables: Sequence[PairTable], sources: Sequence[str]) -> dict[str, float]:
    """Means over all pairs of all ranks, `tokens` as a sum, and count and margin of each source of pairs.

    Args:
        tables: one per rank.
        sources: `PreferencePair.source` of every pair, in the order of the tables' rows.
    """
    columns = {name: [value for table in tables for value in table.get(name, [])] for name in tables[0] or {}}
    columns = {name: values for name, values in columns.items() if values}
    metrics = {name: sum(values) / len(values) for name, values in columns.items()}
    metrics["tokens"] = sum(columns.get("tokens", []))
    for source in sorted(set(sources)):
        margins = [m for m, name in zip(columns["rewards/margins"], sources, strict=True) if name == source]
        metrics[f"pairs/{source}"] = float(len(margins))
        metrics[f"rewards/margins/{source}"] = sum(margins) / len(margins)
    return metrics
