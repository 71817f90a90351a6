"""The reference: the start policy, frozen. How it is kept, asked for log-probs, and read for a push.

tuning   ZeRO                                   kept as                                   memory per rank
LoRA     any                                    the policy with its adapters off          none
full     0-2                                    a second model, which shares a frozen     the model, less that tower;
                                                vision tower                              none while it is not needed
full     3 on one rank                          a second model that shares nothing        the model
full     3 on several ranks, or params on CPU   one in a ZeRO-3 engine of its own         its share, and a layer

A second model is read from disk, weight by weight, to where it stays. Where all pairs come from files and their
log-probs are cached, it is read when it is first asked for, and given up when steps have long not asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.config import Lora, RunConfig
from common.protocols import TrainEngine
from learner.batch.collate import RowBatch
from learner.batch.encoded import EncodedPair
from learner.forward.logps import CompletionLogps
from learner.forward.tree import TreeBatch, tree_batch
from learner.model.policy import Policy
from learner.model.reference_cache import ReferenceCache

IDLE_STEPS = 8
"""A second model is given up after so many steps without a forward of it: reading it takes about as long as one."""


def is_needed_at_times(config: RunConfig, is_cached: bool) -> bool:
    """Whether steps can do without the reference model: no pair is sampled, and log-probs of the others are kept.

    ZeRO-3 keeps its share all the same: it is small, and all ranks would have to miss it together.
    """
    if isinstance(config.model.tuning, Lora) or config.learner.zero_stage == 3:
        return False
    return is_cached and not any(config.mixture.fractions)


@dataclass(slots=True)
class SecondModel:
    """The start policy as a model of its own.

    Attributes:
        policy: as it was read.
        module: to call; under ZeRO-3 DeepSpeed's wrapper around it.
        idle_steps: steps since its last forward.
    """

    policy: Policy
    module: nn.Module
    idle_steps: int = 0


class Reference:
    """Called for log-probs without gradients, with the arguments of `Policy.forward`. With ZeRO-3 all ranks must call.

    Args:
        engine: that holds the policy.
        device, dtype: of batches.
        cache: of log-probs, if there is one.
        read: gives the start policy as a model of its own; None for LoRA.
        at_times: read it when it is asked for, and give it up again.
    """

    def __init__(
        self,
        engine: TrainEngine,
        device: torch.device,
        dtype: torch.dtype,
        cache: ReferenceCache | None = None,
        read: Callable[[], Policy] | None = None,
        at_times: bool = False,
    ) -> None:
        self.cache = cache
        self._engine = engine
        self._device = device
        self._dtype = dtype
        self._read = read
        self._at_times = at_times
        self._second: SecondModel | None = None
        if read is not None and not at_times:
            self._second = self._placed(read)

    @property
    def copy(self) -> Policy | None:
        """The second model, where there is one now."""
        return None if self._second is None else self._second.policy

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
        if self._read is not None:
            second = self._at_hand(self._read)
            second.idle_steps = 0
            logps = second.module(batch, alternatives=alternatives, best=best)
        else:
            logps = self._engine.module(
                batch, adapters=False, alternatives=alternatives, best=best
            )
        assert isinstance(logps, CompletionLogps)
        return logps

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Start weights by name (collective); none with LoRA. Each is whole until the next is asked for."""
        if self._read is None:
            return
        was_there = self._second is not None
        if was_there or self._engine.rank == 0:
            second = self._at_hand(self._read)
            yield from self._engine.gathered(second.policy)
        if not was_there:
            self._second = None

    @contextmanager
    def parameters(self) -> Iterator[Mapping[str, nn.Parameter]]:
        """The start policy's by Hugging Face name, as they are kept; none with LoRA.

        A model that is not at hand is read on rank 0 alone: without ZeRO-3 nothing is gathered of it.
        """
        was_there = self._second is not None
        if self._read is None or not (was_there or self._engine.rank == 0):
            yield {}
            return
        try:
            second = self._at_hand(self._read)
            yield dict(second.policy.net.named_parameters(remove_duplicate=False))
        finally:
            # Also after a push that failed.
            if not was_there:
                self._second = None

    def end_step(self) -> None:
        """Give the second model up, once steps have long not asked for it and can do without."""
        if self._second is None or not self._at_times:
            return
        self._second.idle_steps += 1
        if self._second.idle_steps > IDLE_STEPS:
            self._second = None

    def _at_hand(self, read: Callable[[], Policy]) -> SecondModel:
        if self._second is None:
            self._second = self._placed(read)
        return self._second

    def _placed(self, read: Callable[[], Policy]) -> SecondModel:
        # A run that is resumed reads it at another step, and must draw the same numbers.
        with torch.random.fork_rng(devices=[]):
            policy = read()
        return SecondModel(policy, self._engine.place_frozen(policy))

    def tree(self, pairs: list[EncodedPair]) -> TreeBatch:
        """The tree of these pairs, on the device."""
        return tree_batch(pairs).to(self._device, self._dtype)

    def close(self) -> None:
        """Close the cache's files."""
        if self.cache is not None:
            self.cache.close()
