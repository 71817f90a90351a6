"""Policy and reference, and how pairs become batches that both take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from common.protocols import TrainEngine
from learner.batch.collate import Collator, RowBatch
from learner.batch.encoded import EncodedPair
from learner.batch.stopwatch import Stopwatch
from learner.forward.logps import CompletionLogps
from learner.forward.tree import TreeBatch

ReferenceForward = Callable[..., CompletionLogps]
"""Log-probs of the reference model, called without gradients; arguments as of `Policy.forward`."""


@dataclass(frozen=True, slots=True)
class Models:
    """What a step runs forwards with; `engine.module` is the policy.

    Args:
        device, dtype: of batches.
        input_time: of making batches.
    """

    engine: TrainEngine
    reference: ReferenceForward
    collator: Collator
    device: torch.device
    dtype: torch.dtype
    input_time: Stopwatch = field(default_factory=Stopwatch)

    def collate(self, pairs: Sequence[EncodedPair]) -> RowBatch | TreeBatch:
        """The batch of these pairs, on the device."""
        with self.input_time.running():
            batch = self.collator.batch(pairs)
        # Not counted: a copy to a GPU waits for what the GPU has still to do.
        return batch.to(self.device, self.dtype)
