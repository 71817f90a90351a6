"""The reference: the start policy, frozen. How it is kept, asked for log-probs, and read for a push.

tuning   ZeRO                                   kept as                                   memory per rank
LoRA     any                                    the policy with its adapters off          none
full     0-2                                    a copy, sharing a frozen vision tower     the model, less that tower
full     3 on one rank                          a copy that shares nothing                the model
full     3 on several ranks, or params on CPU   a copy in a ZeRO-3 engine of its own      its share, and a layer
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from common.config import Lora, RunConfig
from common.protocols import TrainEngine
from learner.batch.collate import RowBatch
from learner.batch.encoded import EncodedPair
from learner.forward.logps import CompletionLogps
from learner.forward.tree import TreeBatch, tree_batch
from learner.model.policy import Policy, freeze_copy
from learner.model.reference_cache import ReferenceCache


class Reference:
    """Called for log-probs without gradients, with the arguments of `Policy.forward`. With ZeRO-3 all ranks must call.

    Args:
        config: of the run.
        policy: as it starts, on the CPU.
    """

    def __init__(self, config: RunConfig, policy: Policy) -> None:
        self.copy: Policy | None = None
        if not isinstance(config.model.tuning, Lora):
            # ZeRO-3 splits the policy's parameters up, so nothing may be shared with it.
            share_tower = config.learner.zero_stage < 3
            self.copy = freeze_copy(policy, share_tower)
        self.cache: ReferenceCache | None = None

    def start(
        self,
        engine: TrainEngine,
        device: torch.device,
        dtype: torch.dtype,
        cache: ReferenceCache | None,
    ) -> None:
        """Bring the copy to its place, once the policy is in its engine.

        Args:
            device, dtype: of batches.
            cache: of log-probs, if there is one.
        """
        self.cache = cache
        self._engine = engine
        self._device = device
        self._dtype = dtype
        self._module: nn.Module | None = None
        if self.copy is not None:
            self._module = engine.place_frozen(self.copy)

    def __call__(
        self,
        batch: RowBatch | TreeBatch,
        alternatives: Tensor | None = None,
        best: bool = False,
    ) -> CompletionLogps:
        """Log-probs from the cache where it has them, else from a forward."""
        if self.cache is None or not isinstance(batch, TreeBatch):
            return self.forward(batch, alternatives, best)
        assert alternatives is None and not best, (
            "losses that ask for more go through plain rows"
        )
        return self.cache.logps(batch, self.forward, self.tree)

    def forward(
        self,
        batch: RowBatch | TreeBatch,
        alternatives: Tensor | None = None,
        best: bool = False,
    ) -> CompletionLogps:
        """Run the reference, whatever is cached."""
        if self._module is not None:
            logps = self._module(batch, alternatives=alternatives, best=best)
        else:
            logps = self._engine.module(
                batch, adapters=False, alternatives=alternatives, best=best
            )
        assert isinstance(logps, CompletionLogps)
        return logps

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Start weights by name (collective); none with LoRA. Each is whole until the next is asked for."""
        if self.copy is None:
            return iter(())
        return self._engine.gathered(self.copy)

    def tree(self, pairs: list[EncodedPair]) -> TreeBatch:
        """The tree of these pairs, on the device."""
        return tree_batch(pairs).to(self._device, self._dtype)

    def close(self) -> None:
        """Close the cache's files."""
        if self.cache is not None:
            self.cache.close()
