"""Forward and backward of one global batch: micro-batches that add up to exactly the gradient of one big batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from common.config.losses import Loss
from common.records import PreferencePair
from learner.batch.collate import EncodedPair, RowBatch
from learner.batch.plan import BatchPlan, MicroBatch
from learner.drift import drift_of
from learner.forward.logps import CompletionLogps
from learner.losses import loss_figures, pair_losses, pair_metrics
from learner.losses.noised_image import NoisedImages, NoisedImageTokens
from learner.losses.objective import Objective
from learner.losses.pair_logps import (
    PairLogps,
    grouped_by_settings,
    pair_logps,
    with_changed_tokens,
    with_tokens,
)
from learner.model.models import Models

Metrics = dict[str, float]

PairTable = dict[str, list[float]]
"""Metric name -> values, one per pair that counts; those of `learner.drift` and of single losses may lack
pairs."""


def accumulate(
    models: Models,
    plan: BatchPlan,
    objective: Objective,
    noised_images: NoisedImages | None = None,
) -> PairTable:
    """Add up the gradient of the global batch's weighted mean.

    Args:
        noised_images: if a loss of the global batch needs them.

    Returns:
        loss, weight, tokens and metrics of this rank's pairs.
    """
    engine = models.engine
    stop_token_ids = models.collator.encoder.stop_token_ids
    table: PairTable = defaultdict(list)
    for micro_batch in plan.micro_batches:
        pairs = micro_batch.pairs
        policy, reference = _forward(models, pairs, objective, noised_images)
        logps = loss_inputs(policy, reference, pairs, objective)
        settings = [objective.loss(pair.pair) for pair in micro_batch.pairs]
        columns = grouped_by_settings(_loss_and_metrics, logps, settings)
        losses = columns["loss"]
        weights = losses.new_tensor(_weights(micro_batch, objective))
        # This micro-batch's share of Σ w_i · loss_i / Σ w_i. Engines average gradients over ranks, hence the factor
        # `world_size`.
        scale = engine.world_size / objective.total_weight
        share = (losses * weights).sum() * scale
        # A loss that is not finite may have a gradient that is: then make it NaN too, so that all ranks skip the step.
        nan_if_not_finite = torch.where(share.isfinite(), 1.0, torch.nan)
        engine.backward(share * nan_if_not_finite)
        columns["weight"] = weights
        columns["tokens"] = logps.num_tokens
        columns["lengths/chosen"] = logps.chosen_lengths
        columns["lengths/rejected"] = logps.rejected_lengths
        _append(table, micro_batch, columns)
        drift = drift_of(policy, reference, micro_batch, stop_token_ids)
        figures = loss_figures(logps, settings[: len(micro_batch.counted)])
        for name, values in (drift | figures).items():
            table[name] += values
    return table


def _forward(
    models: Models,
    pairs: Sequence[EncodedPair],
    objective: Objective,
    noised_images: NoisedImages | None,
) -> tuple[CompletionLogps, CompletionLogps | None]:
    """Run policy and reference on a micro-batch; no reference where no loss reads it."""
    batch = models.collate(pairs)
    tokens = NoisedImageTokens(None, None)
    if noised_images is not None:
        assert isinstance(batch, RowBatch), (
            "learner/model/fast_path.py keeps plain rows for it"
        )
        tokens = noised_images.tokens(pairs, batch)
    reference_logps = None
    if objective.needs_reference:
        # Before the policy: its activations for the backward pass need not be there meanwhile.
        with torch.no_grad():
            reference_logps = models.reference(batch, alternatives=tokens.reference)
    policy_logps = models.engine.module(batch, alternatives=tokens.policy)
    return policy_logps, reference_logps


def loss_inputs(
    policy: CompletionLogps,
    reference: CompletionLogps | None,
    pairs: Sequence[EncodedPair],
    objective: Objective,
) -> PairLogps:
    """Everything that the losses of these pairs read."""
    logps = pair_logps(policy, reference, pairs)
    records = [pair.pair for pair in pairs]
    advantages = objective.advantages(records)
    if advantages is not None:
        # [pairs, 2]
        advantage_table = logps.policy_chosen.new_tensor(advantages)
        logps = replace(logps, advantages=advantage_table)
    # A field is filled for all pairs of the micro-batch as soon as one of them needs it.
    needs = [objective.needs(record) for record in records]
    if any(need.mean_reward for need in needs):
        shift = torch.full_like(logps.policy_chosen, objective.reward_shift)
        logps = replace(logps, reward_shift=shift)
    min_matches = [need.changed_tokens for need in needs]
    if any(min_matches):
        logps = with_changed_tokens(logps, policy, reference, pairs, min_matches)
    wanted = [need.tokens for need in needs]
    if any(wanted):
        logps = with_tokens(logps, policy, reference, pairs, wanted)
    return logps


def _loss_and_metrics(logps: PairLogps, settings: Loss) -> dict[str, torch.Tensor]:
    columns = pair_metrics(logps, settings)
    columns["loss"] = pair_losses(logps, settings)
    return columns


def _weights(micro_batch: MicroBatch, objective: Objective) -> list[float]:
    """The weight of each pair of a micro-batch: its source's, and 0 for a filler."""
    weights = [objective.weight(pair.pair) for pair in micro_batch.counted]
    # Fillers stand behind the pairs that count.
    filler_weights = [0.0] * micro_batch.num_fillers
    return weights + filler_weights


def _append(
    table: PairTable,
    micro_batch: MicroBatch,
    columns: Mapping[str, torch.Tensor],
) -> None:
    """Add the rows of the pairs that count."""
    num_counted = len(micro_batch.counted)
    for name, values in columns.items():
        counted = values[:num_counted].detach()
        table[name] += counted.double().tolist()


def reduce_tables(
    tables: Sequence[PairTable],
    pairs: Sequence[PreferencePair],
) -> Metrics:
    """Means over all pairs of all ranks, `loss` weighted, `tokens` a sum; each source's count, loss and margin.

    Args:
        tables: one per rank.
        pairs: in the order of the tables' rows (`BatchPlan.rows`).
    """
    columns = _joined_columns(tables)
    weights = columns.pop("weight")
    metrics: Metrics = {}
    for name, values in columns.items():
        metrics[name] = _mean(values)
    # Two columns are no plain means.
    metrics["tokens"] = sum(columns["tokens"])
    weighted_losses = 0.0
    for weight, loss in zip(weights, columns["loss"], strict=True):
        weighted_losses += weight * loss
    metrics["loss"] = weighted_losses / sum(weights)
    for source, rows in _rows_by_source(pairs).items():
        metrics[f"pairs/{source}"] = float(len(rows))
        for name in ("loss", "rewards/margins"):
            values = [columns[name][row] for row in rows]
            metrics[f"{name}/{source}"] = _mean(values)
    return metrics


def margins_of(
    tables: Sequence[PairTable],
    pairs: Sequence[PreferencePair],
) -> dict[str, float]:
    """Pair -> its implicit reward margin; arguments as of `reduce_tables`."""
    margins = _joined_columns(tables)["rewards/margins"]
    return {pair.id: margin for pair, margin in zip(pairs, margins, strict=True)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rows_by_source(pairs: Sequence[PreferencePair]) -> dict[str, list[int]]:
    """Source -> places of its pairs, sources in alphabetical order."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        rows[pair.source].append(row)
    return dict(sorted(rows.items()))


def _joined_columns(tables: Sequence[PairTable]) -> PairTable:
    """The tables of all ranks, one below the other."""
    columns: PairTable = defaultdict(list)
    for table in tables:
        for name, values in table.items():
            columns[name] += values
    return columns
