"""The learner: a plain class that becomes one worker per rank. Every method is called on all ranks, in one order.

start -> (step | publish | save | export)* -> close
step      refuse what cannot be trained on -> micro-batches: reference, policy, loss, backward -> one update
publish   log-probs of the probe -> weights gathered on rank 0 -> manifest and arrays under hub names
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.chat import ChatEncoder
from common.config import Lora, RunConfig
from common.errors import UserError
from common.images import ImageStore
from common.protocols import TrainEngine
from common.records import (
    Dropped,
    LogprobProbe,
    PreferencePair,
    Prompt,
    StepResult,
    WeightManifest,
)
from common.seeding import derive_seed
from learner import checkpoint
from learner.batching import BatchPlan, MicroBatch, MicroSize, plan_batch
from learner.collate import Collator, RowBatch
from learner.cpu_memory import keep_freed_pages
from learner.crops import crop_of
from learner.fast import FastPath
from learner.grounding import agreed_views, deltas, grounding_metrics
from learner.guard import SkipGuard
from learner.objective import Objective
from learner.policy import is_adapter, load_policy
from learner.povid import Povid
from learner.publisher import export_policy, package, package_adapter, plain_weights
from learner.ranks import free_address, gather
from learner.reference import Reference
from learner.reference_cache import ReferenceCache, identity
from learner.reward_shift import RewardShift
from learner.tree import TreeBatch
from learner.update import accumulate, reduce_table

if TYPE_CHECKING:
    import numpy as np

SHARD_SIZE = "5GB"


class Learner:
    """One rank of the learner.

    Args:
        config: the run's configuration.
        rank, world_size: which of how many.
        master_address, master_port: where several ranks meet; rank 0 listens there.
        model_path: the start policy if it is not `config.model.path`.
    """

    def __init__(
        self,
        config: RunConfig,
        rank: int = 0,
        world_size: int = 1,
        master_address: str = "127.0.0.1",
        master_port: int = 0,
        model_path: str | None = None,
    ) -> None:
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.model_path = model_path or config.model.path
        self._meeting_point = (master_address, master_port)
        self._dtype: torch.dtype = getattr(torch, config.model.dtype)
        self._probe: tuple[Prompt, tuple[int, ...]] | None = None
        self._step = 0
        self._steps_skipped = 0
        self._reward_shift = RewardShift()
        self._guard = SkipGuard(
            config.learner.max_skipped_steps, config.run.dir, writes=rank == 0
        )

    def rendezvous(self) -> tuple[str, int]:
        """An address of this node and a free port, for all ranks to meet at; asked of rank 0."""
        return free_address()

    def start(
        self, master_address: str | None = None, master_port: int | None = None
    ) -> dict[str, Any]:
        """Load the policy, make the reference, start the engine. The address, if given, replaces the constructor's.

        Returns:
            `num_params`, `num_trainable_params`, `device`, `world_size`, `start_s`, `fallbacks` (switches of
            `learner.fast` that this run cannot have: reason).

        Raises:
            UserError: the model cannot be loaded, the device is missing, or the ranks do not meet.
        """
        begun = time.perf_counter()
        config = self.config
        if master_address is not None and master_port is not None:
            self._meeting_point = (master_address, master_port)
        self._device = _device(config)
        if self._device.type == "cpu":
            keep_freed_pages()
        torch.manual_seed(derive_seed(config.run.seed, "policy"))
        self._policy = load_policy(
            config.model, self.model_path, config.learner.gradient_checkpointing
        )
        params = list(self._policy.parameters())
        counts = {
            "num_params": sum(parameter.numel() for parameter in params),
            "num_trainable_params": sum(
                parameter.numel() for parameter in params if parameter.requires_grad
            ),
        }
        self._reference = Reference(config, self._policy)
        self._fast = FastPath.of(config, self._policy, config.learner.loss_kinds)
        self._fast.apply(config, self._policy, self._reference.copy)
        encoder = ChatEncoder(self.model_path, config.model.max_length)
        self._collator = Collator(
            encoder, tree=self._fast.share_prompt, crop_of=crop_of(config)
        )
        cache = None
        if self._fast.reference_cache is not None:
            quantize = (
                config.model.tuning.quantize
                if isinstance(config.model.tuning, Lora)
                else "none"
            )
            known = identity(encoder, self._dtype, quantize)
            cache = ReferenceCache(self._fast.reference_cache, self.rank, known)
        self._engine = self._make_engine()
        self._reference.start(self._engine, self._device, self._dtype, cache)
        torch.manual_seed(derive_seed(config.run.seed, "learner", self.rank))
        facts = {
            "device": str(self._device),
            "world_size": self.world_size,
            "fallbacks": self._fast.fallbacks,
        }
        return {**counts, **facts, "start_s": time.perf_counter() - begun}

    def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        """One update on a global batch, the same list on every rank; each rank trains on its share.

        Returns:
            Metrics reduced over ranks with the ids trained on, and the refused pairs. A batch without a usable pair
            or with a non-finite gradient changes nothing, counts in `steps_skipped`, and returns no ids.

        Raises:
            UserError: `learner.max_skipped_steps` batches in a row were not finite, the last one is on disk; or had no
                usable pair.
        """
        begun = time.perf_counter()
        learner = self.config.learner
        plan = self._plan(pairs)
        refused = {drop.id for drop in plan.dropped}
        dropped = list(plan.dropped)
        trained = [pair for pair in pairs if pair.id not in refused]
        metrics: dict[str, float] = {}
        grounding = self._grounding(trained) if self._checkpoint_follows(step) else {}
        if plan.num_pairs:
            objective = Objective.of(learner, trained, self._reward_shift.mean)
            models = (self._engine, self._reference, self._collator)
            povid = self._povid(step, trained)
            table = accumulate(
                *models, plan, objective, self._device, self._dtype, povid
            )
            update = dict(self._engine.step())
            order = [
                pair
                for rank in range(self.world_size)
                for pair in pairs[rank :: self.world_size]
            ]
            sources = [pair.source for pair in order if pair.id not in refused]
            tables = gather(table, self.world_size)
            metrics = {**reduce_table(tables, sources), **update}
            skipped = bool(metrics.pop("skipped", 0.0))
            self._guard.note(step, skipped, trained)
            if skipped:
                dropped += [
                    Dropped(pair.id, "step_skipped", "loss or gradient not finite")
                    for pair in trained
                ]
                trained = []
            else:
                counts = [learner.loss_of(source).kind == "mpo" for source in sources]
                self._reward_shift = self._reward_shift.after(tables, counts)
        else:
            self._guard.note_empty(step, dropped)
        self._step = step
        self._steps_skipped += not trained
        metrics |= grounding
        metrics["pairs/trained"] = float(len(trained))
        metrics["steps_skipped"] = float(self._steps_skipped)
        metrics["time/step_s"] = time.perf_counter() - begun
        return StepResult(step, metrics, tuple(pair.id for pair in trained)), dropped

    @torch.no_grad()
    def fill_reference_cache(self, pairs: list[PreferencePair]) -> int:
        """Find the reference log-probs of offline pairs ahead of training; returns how many pairs were run."""
        cache = self._reference.cache
        if cache is None:
            return 0
        before = cache.num_misses
        for micro_batch in self._plan(pairs).micro_batches:
            self._reference(self._reference.tree(list(micro_batch.pairs)))
        return cache.num_misses - before

    def set_probe(self, prompt: Prompt, token_ids: tuple[int, ...]) -> None:
        """The response whose log-probs every manifest carries from now on.

        Raises:
            UserError: the prompt cannot be encoded, or the response is empty or holds media tokens.
        """
        media = set(token_ids) & set(self._collator.encoder.media_token_ids)
        if not token_ids or media:
            raise UserError(
                f"probe: expected at least one response token and no media token, got {len(token_ids)} tokens with "
                f"media tokens {sorted(media)}; probe with tokens the policy may sample"
            )
        self._collator.single(prompt, tuple(token_ids))
        self._probe = (prompt, tuple(token_ids))

    def publish(
        self, version: int
    ) -> tuple[WeightManifest | None, dict[str, np.ndarray]]:  # type: ignore[type-arg]
        """The weights as they are now, of LoRA merged or the adapter alone (`model.tuning.push`), with the manifest.

        Rank 0 only, others get (None, {}).
        """
        probe = self._run_probe()
        tuning = self.config.model.tuning
        adapter = isinstance(tuning, Lora) and tuning.push == "adapter"
        gathered = (
            self._engine.gather_weights(is_adapter)
            if adapter
            else self._engine.gather_weights()
        )
        start = self._reference.weights()
        if gathered is None:
            deque(start, maxlen=0)
            return None, {}
        if isinstance(tuning, Lora) and adapter:
            return package_adapter(version, gathered, tuning, probe)
        current, base = plain_weights(gathered, tuning, self._policy)
        return package(version, current, start if base is None else base.items(), probe)

    def export(self, directory: str | Path) -> None:
        """A Hugging Face directory of the policy, merged if LoRA, for anyone to load; replaces an older one whole."""
        gathered = self._engine.gather_weights()
        if gathered is not None:
            tuning = self.config.model.tuning
            export_policy(
                Path(directory),
                self._policy,
                self._collator.encoder,
                gathered,
                tuning,
                SHARD_SIZE,
            )

    def save(self, directory: str | Path) -> None:
        """Engine, random state and counters of every rank, for an exact resume."""
        counters = {
            "step": self._step,
            "steps_skipped": self._steps_skipped,
            **self._reward_shift.counters,
        }
        checkpoint.save(Path(directory), self._engine, counters)

    def load(self, directory: str | Path) -> dict[str, float]:
        """Go on from `save` as if nothing had happened; returns the counters.

        Raises:
            UserError: no checkpoint, a damaged one, or one of another model or number of ranks.
        """
        counters = checkpoint.load(Path(directory), self._engine)
        self._step, self._steps_skipped = (
            int(counters["step"]),
            int(counters["steps_skipped"]),
        )
        self._reward_shift = RewardShift.of(counters)
        return counters

    def close(self) -> None:
        """Leave the process group and close files."""
        self._reference.close()
        self._engine.close()

    def _checkpoint_follows(self, step: int) -> bool:
        return step > 0 and (
            step % self.config.checkpoint.interval == 0
            or step == self.config.learner.num_steps
        )

    def _grounding(self, pairs: list[PreferencePair]) -> dict[str, float]:
        """The grounding gate on the first pairs of a batch, before it is trained on (collective)."""
        store = ImageStore(self.config.run.dir / "blank_images")
        shown = agreed_views(
            pairs[: self.config.learner.grounding_pairs], store, self.world_size
        )
        found: dict[str, list[float]] = {}
        for view, seen in shown.items():
            reference = self._reference if view == "true" else self._reference.forward
            found[view] = deltas(
                self._engine.module,
                reference,
                self._plan(seen),
                self._collate,
                self.world_size,
            )
        return grounding_metrics(found)

    def _collate(self, micro_batch: MicroBatch) -> RowBatch | TreeBatch:
        return self._collator.batch(micro_batch.pairs).to(self._device, self._dtype)

    def _plan(self, pairs: list[PreferencePair]) -> BatchPlan:
        size = MicroSize(
            self.config.learner.micro_batch, self.config.learner.fast.pack_tokens
        )
        return plan_batch(pairs, self._collator, size, self.rank, self.world_size)

    def _make_engine(self) -> TrainEngine:
        config = self.config.learner
        if config.engine == "torch":
            from learner.torch_engine import TorchEngine

            return TorchEngine(self._policy.to(self._device), config)
        from learner.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(
            self._policy, config, self.rank, self.world_size, *self._meeting_point
        )

    def _povid(self, step: int, pairs: list[PreferencePair]) -> Povid | None:
        """What the povid loss needs; None when no pair of the global batch has it."""
        losses = [self.config.learner.loss_of(pair.source) for pair in pairs]
        if all(loss.kind != "povid" for loss in losses):
            return None
        return Povid(
            self._collator.encoder,
            losses,
            derive_seed(self.config.run.seed, "povid", step),
        )

    @torch.no_grad()
    def _run_probe(self) -> LogprobProbe | None:
        if self._probe is None:
            return None
        prompt, token_ids = self._probe
        batch = self._collator.single(prompt, token_ids).to(self._device, self._dtype)
        module = self._engine.module
        module.eval()
        logps = module(batch).token_logps[0]
        module.train()
        return LogprobProbe(prompt, token_ids, tuple(logps.double().tolist()))


def _device(config: RunConfig) -> torch.device:
    if config.learner.num_gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"learner.num_gpus: expected a CUDA device, got none for num_gpus = {config.learner.num_gpus}; "
            "set learner.num_gpus = 0 or start on a GPU machine"
        )
    return torch.device("cuda")
