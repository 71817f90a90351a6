"""What losses read of a pair: summed log-probs of both sides under policy and reference, and what some need beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from common.config.losses import Loss
from learner.batch.encoded import EncodedPair
from learner.forward.logps import CompletionLogps
from learner.losses.changed_tokens import changed_token_mask


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed completion log-probs in nats and completion lengths in tokens, each of shape [pairs].

    Only if a loss needs them (`learner.losses.Needs`), else None:

    `policy_noise`, `ref_noise` [pairs]   of the tokens that the models predict for the noised image (povid)
    `advantages` [pairs, 2]               of chosen and rejected (rloo, grpo)
    `tokens` [pairs, 2, columns, 3]       of every token of both sides, 0 behind their ends: its log-probs under policy,
                                          reference, and the weights that sampled it (grpo)
    `cropped_ratios` [pairs]              logp - logp_ref of the chosen side behind a crop of its image (mdpo)
    `changed_ratios` [pairs, 2]           the part of both sides' log-ratios that lies in changed tokens (ddpo)
    `changed_lengths` [pairs, 2]          number of changed tokens (ddpo)
    `reward_shift` [pairs]                mean reward of the run so far (mpo)
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    policy_noise: Tensor | None = None
    ref_noise: Tensor | None = None
    advantages: Tensor | None = None
    tokens: Tensor | None = None
    cropped_ratios: Tensor | None = None
    changed_ratios: Tensor | None = None
    changed_lengths: Tensor | None = None
    reward_shift: Tensor | None = None

    @property
    def chosen_ratios(self) -> Tensor:
        """logp - logp_ref of the chosen side, [pairs]."""
        return self.policy_chosen - self.ref_chosen

    @property
    def rejected_ratios(self) -> Tensor:
        """logp - logp_ref of the rejected side, [pairs]."""
        return self.policy_rejected - self.ref_rejected

    @property
    def delta(self) -> Tensor:
        """The difference of the log-ratios, [pairs]: the implicit reward margin without β."""
        return self.chosen_ratios - self.rejected_ratios

    @property
    def num_tokens(self) -> Tensor:
        """Tokens of both completions, [pairs]."""
        return self.chosen_lengths + self.rejected_lengths

    def select(self, index: Tensor) -> PairLogps:
        """The pairs at these places."""
        selected: dict[str, Tensor] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                selected[field.name] = value[index]
        return replace(self, **selected)


def pair_logps(
    policy: CompletionLogps,
    reference: CompletionLogps | None,
    pairs: Sequence[EncodedPair] = (),
) -> PairLogps:
    """Sum the rows of a forward to pairs; rows are as in `learner.batch.encoded.rows_of`.

    Args:
        reference: None when no loss reads it; its log-probs then count as 0.
        pairs: what the rows were made from; may be left out when there are no rows behind crops.
    """
    num_pairs = len(pairs) or len(policy.mask) // 2
    chosen = slice(num_pairs)
    rejected = slice(num_pairs, 2 * num_pairs)
    behind_crops = slice(2 * num_pairs, None)
    # [rows] each, before the rows are paired.
    policy_sums = policy.summed
    lengths = policy.num_tokens
    if reference is None:
        reference_sums = torch.zeros_like(policy_sums)
    else:
        reference_sums = reference.summed
    logps = PairLogps(
        policy_chosen=policy_sums[chosen],
        policy_rejected=policy_sums[rejected],
        ref_chosen=reference_sums[chosen],
        ref_rejected=reference_sums[rejected],
        chosen_lengths=lengths[chosen],
        rejected_lengths=lengths[rejected],
    )
    ratios = policy_sums - reference_sums
    logps = _with_crops(logps, ratios[behind_crops], pairs)
    if reference is not None:
        logps = _with_noised_images(logps, policy, reference)
    return logps


def _with_crops(
    logps: PairLogps,
    cropped_ratios: Tensor,
    pairs: Sequence[EncodedPair],
) -> PairLogps:
    """Add the log-ratios behind crops; a pair without a crop has that of its whole image."""
    places = [place for place, pair in enumerate(pairs) if pair.cropped is not None]
    if not places:
        return logps
    # index_put keeps the gradient of both: the ratios behind crops and those that stay.
    index = torch.tensor(places, device=cropped_ratios.device)
    ratios = logps.chosen_ratios.index_put((index,), cropped_ratios)
    return replace(logps, cropped_ratios=ratios)


def _with_noised_images(
    logps: PairLogps,
    policy: CompletionLogps,
    reference: CompletionLogps,
) -> PairLogps:
    """Add the sums over the tokens of the noised image, which stand in the chosen rows."""
    if policy.alternatives is None or reference.alternatives is None:
        return logps
    num_pairs = len(logps.policy_chosen)
    policy_noise = policy.alternatives[:num_pairs].sum(1)
    ref_noise = reference.alternatives[:num_pairs].sum(1)
    # ZeRO-3 waits on every rank for the gradient of every output, also where no pair of a rank has this loss.
    policy_chosen = logps.policy_chosen + 0 * policy_noise
    return replace(
        logps,
        policy_chosen=policy_chosen,
        policy_noise=policy_noise,
        ref_noise=ref_noise,
    )


def with_changed_tokens(
    logps: PairLogps,
    policy: CompletionLogps,
    reference: CompletionLogps | None,
    pairs: Sequence[EncodedPair],
    min_matches: Sequence[int | None],
) -> PairLogps:
    """Add what lies in changed tokens.

    Args:
        min_matches: as of `learner.losses.changed_tokens.changed_tokens`, None for pairs whose loss does not need it.
    """
    assert reference is not None, "a loss on changed tokens reads the reference"
    num_pairs = len(pairs)
    # Of chosen and rejected rows, [2·pairs, columns]; columns are completion tokens as in `token_logps`.
    num_columns = policy.mask.shape[1]
    mask = changed_token_mask(pairs, min_matches, num_columns)
    mask = mask.to(policy.mask.device)
    token_ratios = policy.token_logps - reference.token_logps
    # Rows behind crops are not compared.
    token_ratios = token_ratios[: 2 * num_pairs]
    # [2·pairs] -> [pairs, 2]
    ratios = token_ratios.masked_fill(~mask, 0.0).sum(1)
    lengths = mask.sum(1)
    return replace(
        logps,
        changed_ratios=torch.stack(ratios.split(num_pairs), 1),
        changed_lengths=torch.stack(lengths.split(num_pairs), 1),
    )


def with_tokens(
    logps: PairLogps,
    policy: CompletionLogps,
    reference: CompletionLogps | None,
    pairs: Sequence[EncodedPair],
    wanted: Sequence[bool],
) -> PairLogps:
    """Add the log-probs of all tokens.

    Args:
        wanted: whether a pair's loss needs them; those of sampling are 0 for all others.
    """
    assert reference is not None, "a loss on tokens reads the reference"
    num_pairs = len(pairs)
    # Rows behind crops have no part in it.
    rows = slice(2 * num_pairs)
    of_policy = policy.token_logps[rows]
    of_reference = reference.token_logps[rows]
    of_sampling = sampled_logps(pairs, wanted, of_policy)
    # [2·pairs, columns, 3] -> [pairs, 2, columns, 3]
    by_row = torch.stack(
        [of_policy, of_reference, of_sampling],
        2,
    )
    tokens = torch.stack(by_row.split(num_pairs), 1)
    return replace(logps, tokens=tokens)


def sampled_logps(
    pairs: Sequence[EncodedPair],
    wanted: Sequence[bool],
    like: Tensor,
) -> Tensor:
    """Log-probs under which the tokens of the pairs' rows were sampled, [2·pairs, columns] as `like`."""
    chosen = [pair.pair.chosen for pair in pairs]
    rejected = [pair.pair.rejected for pair in pairs]
    sides = zip(chosen + rejected, [*wanted, *wanted], strict=True)
    # On the CPU first: one transfer to the device.
    table = torch.zeros(like.shape, dtype=like.dtype)
    for row, (side, is_wanted) in enumerate(sides):
        if not is_wanted:
            continue
        logprobs = side.token_logprobs
        assert logprobs is not None, "engines give them to a run with such a loss"
        num_tokens = len(logprobs)
        table[row, :num_tokens] = torch.tensor(logprobs, dtype=like.dtype)
    return table.to(like.device)


def grouped_by_settings(
    function: Callable[[PairLogps, Loss], dict[str, Tensor]],
    logps: PairLogps,
    settings: Sequence[Loss],
) -> dict[str, Tensor]:
    """Call `function` once for all pairs of equal settings; return its values in the order of pairs, [pairs] each."""
    distinct = list(dict.fromkeys(settings))
    if len(distinct) == 1:
        return function(logps, distinct[0])
    # Sort pairs into groups of equal settings, and put the results back in the order of pairs.
    group_of_pair = [distinct.index(loss) for loss in settings]
    groups = torch.tensor(group_of_pair, device=logps.policy_chosen.device)
    places: list[Tensor] = []
    results: list[dict[str, Tensor]] = []
    for group, loss in enumerate(distinct):
        members = (groups == group).nonzero().squeeze(1)
        places.append(members)
        results.append(function(logps.select(members), loss))
    # Where each pair's value stands in the joined results.
    order = torch.cat(places).argsort()
    values: dict[str, Tensor] = {}
    for name in results[0]:
        parts = [result[name] for result in results]
        values[name] = torch.cat(parts)[order]
    return values
