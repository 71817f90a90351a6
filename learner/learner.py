"""The learner: a plain class that becomes one worker per rank. Every method is called on all ranks, in one order.

start -> (prepare | step | publish | save | export | written)* -> close
prepare   worker processes begin with the pictures of a coming step
step      refuse what cannot be trained on -> micro-batches: reference, policy, loss, backward -> one update
publish   log-probs of the probe -> weights gathered on rank 0 -> manifest and arrays
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.command_line.log_lines import note_version
from common.config import RunConfig
from common.data.images import ImageStore
from common.push.meeting import Meeting, Place
from common.push.plan import PushPlan
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
from learner.batch.plan import BatchPlan, MicroSize, plan_batch
from learner.checkpoint.background import BackgroundWriter
from learner.checkpoint.loading import load, restore_random_state
from learner.checkpoint.saving import num_bytes as num_bytes_of
from learner.checkpoint.saving import state_of
from learner.engines.cpu_memory import keep_freed_pages
from learner.engines.ranks import reserved_address
from learner.grounding import agreed_conditions, deltas, grounding_metrics
from learner.model.fast_path import FastPath
from learner.probe import Probe
from learner.publisher import Arrays, Publisher, export_policy, policy_bytes
from learner.start import Start, num_params
from learner.update import Metrics
from learner.updater import Updater, result_of


class Learner:
    """One rank of the learner.

    After `start`, `policy`, `reference`, `models`, `fast` and `updater` are what this rank trains with.

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
        self._probe: Probe | None = None
        self._step = 0
        self._ahead: PromptsAhead | None = None
        self._writer = BackgroundWriter()

    def rendezvous(self) -> tuple[str, int]:
        """An address of this node and a port that is kept free, for all ranks to meet at; asked of rank 0."""
        return reserved_address()

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
        self.models, self.reference = start.models(self.policy, self.fast, self._ahead)
        self.updater = Updater(config, self.models)
        self._publisher = Publisher(
            config, self.model_path, self.policy, self.models, self.reference
        )
        torch.manual_seed(derive_seed(config.run.seed, "learner", self.rank))
        return {
            **num_params(self.policy),
            "device": str(device),
            "world_size": self.world_size,
            "fallbacks": self.fast.fallbacks,
            "start_s": time.perf_counter() - begun,
        }

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
        metrics, skipped = self.updater.update(step, plan)
        if self._ahead is not None:
            self._ahead.forget(step)
        self.reference.end_step()
        self._step = step
        metrics |= grounding
        metrics["steps_skipped"] = float(self.updater.num_skipped)
        metrics["time/input_s"] = self.models.input_time.take()
        metrics["time/step_s"] = time.perf_counter() - begun
        return result_of(step, plan, metrics, skipped, self.updater.margins)

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
        return self._publisher.publish(version, self._run_probe())

    def plan_push(self) -> PushPlan:
        """What streamed pushes of this run consist of: known without a gather."""
        return self._publisher.sender.plan

    def meeting_place(self, networks: Sequence[str]) -> Place:
        """Where engines of these networks (`common.push.meeting.network_id`) find rank 0; asked of rank 0."""
        return self._publisher.sender.meeting_place(networks)

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
        note_version(version)
        sender = self._publisher.sender
        with sender.telling(meeting):
            probe = self._run_probe()
            with self.reference.parameters() as start:
                return sender.push(version, meeting, start, probe)

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

        It replaces an older one whole. Rank 0 holds a copy and writes it beside the next steps, see `written`, or
        without `checkpoint.background` before this returns.
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
        if not self.config.checkpoint.background:
            self._writer.settle()

    def save(self, directory: str | Path) -> None:
        """Engine, random state and counters, for an exact resume.

        They are copied, and written beside the next steps, see `written`. Without `checkpoint.background` they are
        written before this returns.
        """
        counters = {"step": self._step, **self.updater.counters}
        self._writer.restart()
        state = state_of(self.models.engine, counters)
        if self.config.checkpoint.background:
            state = state.copied()
        self._writer.begin(partial(state.write, Path(directory)))
        if not self.config.checkpoint.background:
            self._writer.settle()

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
        self.updater.restore(header.counters)
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
