"""The learner: a plain class that becomes one worker per rank. Every method is called on all ranks, in one order.

start -> (prepare | step | publish | save | export | written)* -> close
prepare   worker processes begin with the pictures of a coming step
step      refuse what cannot be trained on -> micro-batches: reference, policy, loss, backward -> one update
publish   log-probs of the probe -> weights gathered on rank 0 -> manifest and arrays
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from common.chat import ChatEncoder, encoder_of
from common.checkpoint.layout import layout_of
from common.command_line.log_lines import note_version
from common.config import Lora, RunConfig
from common.data.images import ImageStore
from common.push.adapter import pushes_adapter
from common.push.meeting import Meeting, Place
from common.push.plan import PushPlan, model_digest
from common.records import (
    Dropped,
    LogprobProbe,
    PreferencePair,
    ProbeAnswer,
    StepResult,
    WeightManifest,
    WriteReport,
)
from common.seeding import derive_seed
from learner.batch.ahead import PromptsAhead
from learner.batch.collate import Collator
from learner.batch.plan import BatchPlan, MicroSize, plan_batch
from learner.checkpoint.background import BackgroundWriter
from learner.checkpoint.loading import load, restore_random_state
from learner.checkpoint.saving import num_bytes as num_bytes_of
from learner.checkpoint.saving import state_of
from learner.engines.cpu_memory import keep_freed_pages
from learner.engines.ranks import free_address, gather
from learner.grounding import agreed_conditions, deltas, grounding_metrics
from learner.losses.noised_image import NoisedImages
from learner.losses.objective import Objective, crop_of
from learner.losses.reward_shift import RewardShift
from learner.model.fast_path import FastPath
from learner.model.merging import Survival
from learner.model.models import Models
from learner.model.policy import Policy, is_adapter
from learner.model.reference import Reference, is_needed_at_times
from learner.model.reference_cache import ReferenceCache, identity
from learner.model.vision_features import VisionShare
from learner.probe import Probe
from learner.publisher import (
    Arrays,
    export_policy,
    package,
    package_adapter,
    plain_weights,
    policy_bytes,
)
from learner.push.sending import PushSender
from learner.push.source import WeightSource
from learner.skipped_steps import SkippedSteps
from learner.start import Start
from learner.update import Metrics, PairTable, accumulate, reduce_tables


class Learner:
    """One rank of the learner.

    After `start`, `policy`, `reference`, `models` and `fast` are what this rank trains with.

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
        self.reward_shift = RewardShift()
        self._meeting_point = (master_address, master_port)
        self._probe: Probe | None = None
        self._step = 0
        self._steps_skipped = 0
        self._ahead: PromptsAhead | None = None
        self._writer = BackgroundWriter()
        self._skipped_steps = SkippedSteps(
            config.learner.max_skipped_steps,
            config.run.dir,
            writes=rank == 0,
            num_steps=config.learner.num_steps,
        )

    def rendezvous(self) -> tuple[str, int]:
        """An address of this node and a free port, for all ranks to meet at; asked of rank 0."""
        return free_address()

    def start(
        self,
        master_address: str | None = None,
        master_port: int | None = None,
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
        start = Start(config, self.model_path, self.rank, self.world_size)
        device = start.device()
        dtype: torch.dtype = getattr(torch, config.model.dtype)
        if device.type == "cpu":
            keep_freed_pages()
        # First, so that they start while the model is loaded.
        if config.learner.input_workers:
            self._ahead = PromptsAhead(
                config.model, self.model_path, config.learner.input_workers
            )
        start.join(*self._meeting_point)
        # New adapters are drawn at random, and must be equal on all ranks; dropout later must not.
        torch.manual_seed(derive_seed(config.run.seed, "policy"))
        self.policy = start.policy()
        self.fast = FastPath.of(config, self.policy)
        self._start_models(start, device, dtype)
        torch.manual_seed(derive_seed(config.run.seed, "learner", self.rank))
        return {
            **_num_params(self.policy),
            "device": str(device),
            "world_size": self.world_size,
            "fallbacks": self.fast.fallbacks,
            "start_s": time.perf_counter() - begun,
        }

    def _start_models(
        self,
        start: Start,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Put policy and reference into the engine, and what makes their batches beside them."""
        shared = self.fast.shared(self.config, self.policy)
        self.fast.apply(self.config, self.policy, shared)
        encoder = encoder_of(self.config.model, self.model_path)
        collator = Collator(
            encoder,
            tree=self.fast.share_prompt,
            crop_of=crop_of(self.config),
            ahead=self._ahead,
        )
        cache = self._reference_cache(encoder, dtype)
        engine = start.engine(self.policy)
        self.reference = Reference(
            engine,
            device,
            dtype,
            cache,
            self._reference_reader(start, shared),
            is_needed_at_times(self.config, cache is not None),
        )
        self.models = Models(engine, self.reference, collator, device, dtype)

    def prepare(self, step: int, rows: Mapping[int, PreferencePair]) -> None:
        """Begin with the pictures of a coming step in worker processes; each rank with those of its share.

        Args:
            rows: pairs of the step's global batch, as far as they are known, by their place in it.
        """
        share: list[PreferencePair] = []
        for place, pair in rows.items():
            if place % self.world_size == self.rank:
                share.append(pair)
        if self.world_size > 1 and 0 in rows:
            # All ranks look at the first pair with a picture: it is the filler.
            with_picture = [pair for pair in rows.values() if pair.prompt.images]
            share += with_picture[:1]
        self.models.collator.prepare(share, step)

    def step(
        self,
        step: int,
        pairs: list[PreferencePair],
    ) -> tuple[StepResult, list[Dropped]]:
        """One update on a global batch, the same list on every rank; each rank trains on its share.

        Args:
            step: 1 for the first one; `learner.num_steps` for the last.

        Returns:
            Metrics reduced over ranks with the ids trained on, and the refused pairs. A batch without a usable pair
            or with a non-finite gradient changes nothing, counts in `steps_skipped`, and returns no ids.

        Raises:
            UserError: `learner.max_skipped_steps` batches in a row were not finite, the last one is on disk; or had no
                usable pair.
        """
        begun = time.perf_counter()
        plan = self.plan(pairs)
        # Before the update: afterwards the policy has trained on these pairs.
        grounding = self._grounding(step, plan.pairs)
        if plan.pairs:
            metrics, skipped = self._update(step, plan)
        else:
            # A batch without a usable pair counts as skipped.
            self._skipped_steps.note_empty(step, plan.dropped)
            metrics, skipped = {}, True
        if self._ahead is not None:
            self._ahead.forget(step)
        self.reference.end_step()
        self._step = step
        self._steps_skipped += skipped
        metrics |= grounding
        metrics["steps_skipped"] = float(self._steps_skipped)
        metrics["time/input_s"] = self.models.input_time.take()
        metrics["time/step_s"] = time.perf_counter() - begun
        return _result(step, plan, metrics, skipped)

    def _update(self, step: int, plan: BatchPlan) -> tuple[Metrics, bool]:
        """Forward, backward and update of a global batch: its metrics, and whether the update was skipped."""
        objective = self._objective(plan)
        noised_images = self._noised_images(step, objective)
        table = accumulate(self.models, plan, objective, noised_images)
        update = self.models.engine.step()
        tables = gather(table, self.world_size)
        metrics = reduce_tables(tables, plan.rows)
        metrics.update(update)
        skipped = bool(metrics.pop("skipped", 0.0))
        self._skipped_steps.note(step, skipped, plan.pairs)
        if not skipped:
            self._shift_rewards(tables, plan, objective)
        return metrics, skipped

    def plan(self, pairs: list[PreferencePair]) -> BatchPlan:
        """How a global batch is trained on (collective)."""
        learner = self.config.learner
        size = MicroSize(learner.micro_batch, learner.fast.pack_tokens)
        collator = self.models.collator
        with self.models.input_time.running():
            # What nobody foresaw, this process does from the first pair on, and workers from the last.
            share = pairs[self.rank :: self.world_size]
            collator.prepare(share[::-1], self._step + 1)
            return plan_batch(pairs, collator, size, self.rank, self.world_size)

    @torch.no_grad()
    def fill_reference_cache(self, pairs: list[PreferencePair]) -> int:
        """Find the reference log-probs of offline pairs ahead of training; returns how many pairs were run."""
        cache = self.reference.cache
        if cache is None:
            return 0
        before = cache.num_misses
        for micro_batch in self.plan(pairs).micro_batches:
            batch = self.reference.tree(list(micro_batch.pairs))
            # The log-probs go into the cache; nothing else is wanted of them.
            self.reference(batch)
        return cache.num_misses - before

    def set_probe(self, answers: Sequence[ProbeAnswer]) -> LogprobProbe:
        """The answers whose log-probs every manifest carries from now on; theirs as of now (collective).

        Before `load` these are the start policy's, which every engine that is started holds at first.

        Raises:
            UserError: a prompt cannot be encoded, or an answer is empty or holds media tokens.
        """
        # As many as a training step has at a time.
        rows = 2 * self.config.learner.micro_batch
        self._probe = Probe(self.models, answers, rows)
        return self._probe.now()

    def publish(
        self,
        version: int,
    ) -> tuple[WeightManifest | None, Arrays]:
        """The weights as they are now, of LoRA merged or the adapter alone (`model.tuning.push`), with the manifest.

        Rank 0 only, others get (None, {}).
        """
        note_version(version)
        probe = self._run_probe()
        tuning = self.config.model.tuning
        engine = self.models.engine
        adapter_only = pushes_adapter(self.config.model, self.config.rollout)
        wanted = is_adapter if adapter_only else _every_name
        gathered = engine.gather_weights(wanted)
        start_weights = self.reference.weights()
        if gathered is None:
            # Reading the start weights is collective: this rank takes part and keeps none.
            deque(start_weights, maxlen=0)
            return None, {}
        if adapter_only:
            assert isinstance(tuning, Lora)
            return package_adapter(version, gathered, tuning, probe)
        survival = Survival()
        current, base = plain_weights(gathered, tuning, self.policy, survival)
        start = start_weights if base is None else base.items()
        layout = layout_of(self.model_path)
        manifest, arrays = package(version, layout, current, start, probe)
        return replace(manifest, merged_survives=survival.share), arrays

    def plan_push(self) -> PushPlan:
        """What streamed pushes of this run consist of: known without a gather."""
        return self._push_sender.plan

    def meeting_place(self, networks: Sequence[str]) -> Place:
        """Where engines of these networks (`common.push.meeting.network_id`) find rank 0; asked of rank 0."""
        return self._push_sender.meeting_place(networks)

    @torch.no_grad()
    def push(
        self,
        version: int,
        meeting: Meeting,
    ) -> tuple[WeightManifest | None, str]:
        """Send the weights as they are now, LoRA merged, to all members of a meeting (collective).

        Returns:
            The manifest, on rank 0; and why the push broke off, in which case there is none.
        """
        probe = self._run_probe()
        with self.reference.parameters() as start:
            return self._push_sender.push(version, meeting, start, probe)

    @cached_property
    def _push_sender(self) -> PushSender:
        source = WeightSource(
            self.policy,
            self.models.engine,
            layout_of(self.model_path),
            self.config.model.tuning,
            self.models.dtype,
        )
        bucket_bytes = self.config.weights.bucket_mib << 20
        digest = model_digest(self.model_path)
        plan = PushPlan(source.specs, bucket_bytes, digest)
        return PushSender(source, plan, self.rank, self.models.device)

    def rest(self) -> None:
        """Free the GPU memory that torch keeps for later, for an engine that shares the GPU."""
        if self.models.device.type == "cuda":
            torch.cuda.empty_cache()

    def checkpoint_bytes(self, with_policy: bool) -> int:
        """What this rank's `save` writes, and with the policy its `export`."""
        num_bytes = num_bytes_of(self.models.engine)
        if with_policy and self.rank == 0:
            num_bytes += policy_bytes(self.policy, Path(self.model_path))
        return num_bytes

    def export(self, directory: str | Path) -> None:
        """A Hugging Face directory of the policy as it is now, merged if LoRA, for anyone to load.

        It replaces an older one whole. Rank 0 holds a copy and writes it beside the next steps, see `written`.
        """
        gathered = self.models.engine.gather_weights()
        if gathered is None:
            return
        self._writer.begin(
            partial(
                export_policy,
                Path(directory),
                self.policy,
                self.models.collator.encoder,
                gathered,
                self.config.model.tuning,
            )
        )

    def save(self, directory: str | Path) -> float:
        """Engine, random state and counters, for an exact resume; returns the seconds that the next step waited.

        They are copied, and written beside the next steps, see `written`. Without `checkpoint.background` they are
        written before this returns.
        """
        begun = time.perf_counter()
        counters = {
            "step": self._step,
            "steps_skipped": self._steps_skipped,
            **self.reward_shift.counters,
        }
        self._writer.restart()
        state = state_of(self.models.engine, counters)
        if self.config.checkpoint.background:
            state = state.copied()
        self._writer.begin(partial(state.write, Path(directory)))
        if not self.config.checkpoint.background:
            self._writer.settle()
        return time.perf_counter() - begun

    def written(self) -> WriteReport | None:
        """What became of the files of the last `save` and of what was exported since; None while they are written."""
        return self._writer.report()

    def load(self, directory: str | Path) -> list[str]:
        """Go on from `save` as if nothing had happened, whatever engine, stage and number of ranks wrote it.

        Returns:
            A line for what could not be restored: the random state of a rank that was not there.

        Raises:
            UserError: no checkpoint, a damaged one, or one of another model or version.
        """
        header = load(Path(directory), self.models.engine)
        note = restore_random_state(
            Path(directory), header, self.rank, self.config.run.seed
        )
        self._step = int(header.counters["step"])
        self._steps_skipped = int(header.counters["steps_skipped"])
        self.reward_shift = RewardShift.of(header.counters)
        return [] if note is None else [note]

    def close(self) -> None:
        """Leave the process group and close files."""
        self._writer.close()
        if self._ahead is not None:
            self._ahead.close()
        self.reference.close()
        self.models.engine.close()

    def _run_probe(self) -> LogprobProbe | None:
        return None if self._probe is None else self._probe.now()

    def _objective(self, plan: BatchPlan) -> Objective:
        mean_reward = self.reward_shift.mean
        return Objective.of(self.config.learner, plan.pairs, mean_reward)

    def _noised_images(self, step: int, objective: Objective) -> NoisedImages | None:
        """None when no pair of the global batch has a loss that needs them."""
        if not objective.needs_noised_images:
            return None
        seed = derive_seed(self.config.run.seed, "povid", step)
        return NoisedImages(self.models, objective, seed)

    def _shift_rewards(
        self,
        tables: list[PairTable],
        plan: BatchPlan,
        objective: Objective,
    ) -> None:
        """Add the rewards of a step to the mean that losses read."""
        reads_mean = [objective.needs(pair).mean_reward for pair in plan.rows]
        self.reward_shift = self.reward_shift.after(tables, reads_mean)

    def _grounding(self, step: int, pairs: list[PreferencePair]) -> Metrics:
        """The grounding gate on the first pairs of a batch, before it is trained on (collective).

        Return an empty dict unless a checkpoint follows this step.
        """
        if not self._checkpoint_follows(step):
            return {}
        store = ImageStore(self.config.run.dir / "blank_images")
        gated = pairs[: self.config.learner.grounding_pairs]
        # Other conditions than the true images are never asked again, so the reference cache is left alone.
        uncached = replace(self.models, reference=self.reference.forward)
        deltas_of_view: dict[str, list[float]] = {}
        for view, seen in agreed_conditions(gated, store, self.world_size).items():
            models = self.models if view == "true" else uncached
            plan = self.plan(seen)
            deltas_of_view[view] = deltas(models, plan)
        return grounding_metrics(deltas_of_view)

    def _checkpoint_follows(self, step: int) -> bool:
        if step <= 0:
            return False
        is_last = step == self.config.learner.num_steps
        return is_last or step % self.config.checkpoint.interval == 0

    def _reference_cache(
        self,
        encoder: ChatEncoder,
        dtype: torch.dtype,
    ) -> ReferenceCache | None:
        folder = self.fast.reference_cache
        if folder is None:
            return None
        tuning = self.config.model.tuning
        quantize = tuning.quantize if isinstance(tuning, Lora) else "none"
        return ReferenceCache(folder, self.rank, identity(encoder, dtype, quantize))

    def _reference_reader(
        self,
        start: Start,
        shared: VisionShare | None,
    ) -> Callable[[], Policy] | None:
        """Loads the reference of full tuning, and switches it over as the policy is."""
        load = start.reference(self.policy)
        if load is None:
            return None

        def read() -> Policy:
            model = load()
            self.fast.apply(self.config, model, shared)
            return model

        return read


def _result(
    step: int,
    plan: BatchPlan,
    metrics: Metrics,
    skipped: bool,
) -> tuple[StepResult, list[Dropped]]:
    """What a step returns; the pairs of a skipped step are dropped."""
    trained = plan.pairs
    dropped = list(plan.dropped)
    if skipped:
        for pair in plan.pairs:
            drop = Dropped(pair.id, "step_skipped", "loss or gradient not finite")
            dropped.append(drop)
        trained = []
    metrics["pairs/trained"] = float(len(trained))
    trained_ids = tuple(pair.id for pair in trained)
    return StepResult(step, metrics, trained_ids), dropped


def _every_name(name: str) -> bool:
    return True


def _num_params(policy: torch.nn.Module) -> dict[str, int]:
    total, trainable = 0, 0
    for parameter in policy.parameters():
        # ZeRO-3 leaves each rank its part of a parameter only, and says how large the whole is.
        numel = getattr(parameter, "ds_numel", parameter.numel())
        total += numel
        if parameter.requires_grad:
            trainable += numel
    return {"num_params": total, "num_trainable_params": trainable}
