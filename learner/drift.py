"""How far the policy has moved from the reference on the answers that it is trained on.

    drift/chosen, drift/rejected             (logp - logp_ref) / tokens of a side, nats per token
    drift/chosen_end, drift/rejected_end     logp - logp_ref of the end token alone, nats; sides that end with one

All are 0 before the first update. Where the end token of chosen answers gets less likely, the policy learns to go on
where a good answer stops. They cost no forward: each is part of a row that the loss reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

from learner.batch.plan import MicroBatch
from learner.forward.logps import CompletionLogps

Columns: TypeAlias = dict[str, list[float]]


@torch.no_grad()
def drift_of(
    policy: CompletionLogps,
    reference: CompletionLogps | None,
    micro_batch: MicroBatch,
    stop_token_ids: Sequence[int],
) -> Columns:
    """A value of every pair that counts, in order; of end tokens only where a side ends with one.

    Return an empty dict when no loss reads the reference.
    """
    if reference is None:
        return {}
    ratios = policy.token_logps - reference.token_logps
    # [rows]
    lengths = policy.num_tokens
    per_token = ratios.sum(1) / lengths
    last_columns = lengths[:, None] - 1
    of_end = ratios.gather(1, last_columns).squeeze(1)
    # One transfer from the device.
    per_token_list, of_end_list = torch.stack([per_token, of_end]).double().tolist()
    num_pairs = len(micro_batch.pairs)
    columns: Columns = {}
    for place, pair in enumerate(micro_batch.counted):
        sides = {
            "chosen": (place, pair.chosen),
            "rejected": (place + num_pairs, pair.rejected),
        }
        for side, (row, token_ids) in sides.items():
            columns.setdefault(f"drift/{side}", []).append(per_token_list[row])
            if token_ids[-1] in stop_token_ids:
                columns.setdefault(f"drift/{side}_end", []).append(of_end_list[row])
    return columns
