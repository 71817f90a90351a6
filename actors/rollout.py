"""The rollout worker: one engine behind a plain class that the cluster turns into an actor."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from common.command_line.log_lines import note_version
from common.config import Full, RunConfig
from common.data.images import ImageStore
from common.protocols import Engine, GenerationRequest, Tensors, Vitals
from common.push.meeting import EngineSeat, Meeting, tell_broken
from common.push.plan import PushPlan
from common.records import (
    Dropped,
    LoadReport,
    LogprobProbe,
    Message,
    Part,
    PreferencePair,
    ProbeReading,
    Prompt,
    RolloutGroup,
    WeightManifest,
)
from common.seeding import derive_seed
from common.sources import ONLINE_BDHS

if TYPE_CHECKING:
    from actors.bdhs.online import OnlineBdhsSampler
    from actors.engine.vllm_engine import VllmEngine


class RolloutWorker:
    """Generates, scores and loads weights.

    vLLM is imported in `start`, after the number of threads of this worker and of its engine's process is set.

    Args:
        config: the run's.
        index: number of this worker; its engine's seed depends on it.
        model_path: replaces `config.model.path`, for evaluation.
    """

    def __init__(
        self,
        config: RunConfig,
        index: int,
        model_path: str | None = None,
    ) -> None:
        self._config = config
        self._index = index
        self._model = config.model
        if model_path is not None:
            # An exported checkpoint, whose weights have the adapter merged in: none runs beside them.
            exported = {"path": model_path, "tuning": Full()}
            self._model = config.model.model_copy(update=exported)
        self._engine: VllmEngine | None = None
        self._bdhs: OnlineBdhsSampler | None = None

    async def start(self) -> dict[str, Any]:
        """Start the engine and let it answer one request, which compares its prompt with the processor's.

        Returns:
            `engine`, `vllm`, `platform`, `weight_version`, `num_image_tokens` (of a 64 x 64 image), `num_threads`.
        """
        config = self._config
        # Shared by the processes of a split engine.
        split = config.rollout.engine.tensor_parallel_size
        num_threads = max(1, int(config.rollout.num_cpus) // split)
        # Read by torch when it is imported, here and in the engine's process.
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        import torch

        torch.set_num_threads(num_threads)
        # Only now: vLLM reads the number of threads when it is imported.
        from actors.engine.factory import make_engine
        from actors.engine.numerics_gate import GateLimits
        from actors.vllm_api import VERSION, current_platform

        engine = make_engine(
            self._model,
            config.rollout,
            seed=derive_seed(config.run.seed, "rollout", self._index),
            gate=GateLimits.of(config.loop),
            timeout_s=config.loop.call_timeout_s,
            sleeps=config.cluster.placement == "colocated",
        )
        self._engine = engine
        if ONLINE_BDHS in config.online_sources:
            from actors.bdhs.online import OnlineBdhsSampler
            from actors.image_tokens import ImageTokenCounter

            self._bdhs = OnlineBdhsSampler(config, ImageTokenCounter(engine.encoder))
        # Raises when vLLM and the processor expand the image differently.
        group = await _first_answer(engine)
        if isinstance(group, Dropped):
            raise RuntimeError(
                f"rollout worker {self._index}: expected an answer at start, got {group.detail}"
            )
        return {
            "engine": type(engine).__name__,
            "vllm": VERSION,
            "platform": str(current_platform.device_type),
            "weight_version": engine.weight_version,
            "num_image_tokens": group.num_image_tokens,
            "num_threads": num_threads,
        }

    @property
    def engine(self) -> Engine:
        """The running engine."""
        return self._running

    @property
    def _running(self) -> VllmEngine:
        if self._engine is None:
            raise RuntimeError(
                f"rollout worker {self._index}: expected start() before other calls, got none; call it"
            )
        return self._engine

    def vitals(self) -> Vitals:
        """How the engine is; asked from another thread."""
        return Vitals() if self._engine is None else self._engine.vitals()

    async def generate(
        self,
        requests: list[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]:
        """One result per request, in order."""
        return await self.engine.generate(requests)

    async def bdhs_pairs(
        self,
        groups: list[tuple[str, Prompt]],
    ) -> list[PreferencePair | Dropped]:
        """One pair or reason per (group id, prompt), in order.

        The reference answer is chosen, the one that BDHS draws from the current policy is rejected.
        """
        assert self._bdhs is not None, "start() makes it if the mixture has online BDHS"
        return await self._bdhs.pairs(groups, self.engine.generate)

    async def token_logprobs(
        self,
        prompt: Prompt,
        token_ids: Sequence[int],
    ) -> tuple[float, ...]:
        """Log-prob (nats) of each token of a given response under the current weights."""
        return await self.engine.token_logprobs(prompt, token_ids)

    async def score(
        self,
        answers: list[tuple[Prompt, str]],
    ) -> list[tuple[float, ...] | Dropped]:
        """Token log-probs (nats) of whole answers under the current weights, one result per answer, in order."""
        return await self.engine.score(answers)

    async def encode(self, answers: list[str]) -> list[tuple[int, ...]]:
        """Token ids of whole answers, as `score` scores them."""
        assert self._engine is not None, "start() comes first"
        encoder = self._engine.encoder
        return [encoder.encode_response(answer) for answer in answers]

    async def calibrate(
        self, probe: LogprobProbe, proven: ProbeReading | None = None
    ) -> ProbeReading:
        """Measure how far engine and learner are apart while both hold the start policy."""
        return await self.engine.calibrate(probe, proven)

    async def load(
        self,
        manifest: WeightManifest,
        tensors: Tensors,
    ) -> LoadReport:
        """Swap the engine's weights and prove them."""
        report = await self.engine.load_weights(manifest, tensors)
        note_version(report.version)
        return report

    async def check_push(self, version: int, plan: PushPlan) -> EngineSeat:
        """Refuse (UserError) a push that is not of this engine's model; say where the engine is."""
        return await self._running.check_push(version, plan)

    async def receive(
        self,
        version: int,
        plan: PushPlan,
        meeting: Meeting,
        first_rank: int,
    ) -> LoadReport:
        """Take weights from the learner in buckets; `prove` follows."""
        from actors.weights.streamed_push import StreamedPush

        push = StreamedPush(version, plan, meeting, first_rank)
        report = await self._running.receive_weights(push)
        note_version(report.version)
        return report

    async def break_push(self, meeting: Meeting, reason: str) -> None:
        """Tell all members of a push that one of them is gone."""

        def tell() -> None:
            tell_broken(meeting.store(), reason)

        # The store may not answer at once.
        await asyncio.to_thread(tell)

    async def prove(self, manifest: WeightManifest, received: LoadReport) -> LoadReport:
        """Prove that the engine runs what it received."""
        return await self._running.prove(manifest, received)

    async def sleep(self, level: int) -> None:
        """Free the engine's GPU memory; nothing may be asked until `wake`."""
        await self.engine.sleep(level)

    async def wake(self) -> None:
        """Take the engine's GPU memory back, with empty caches."""
        await self.engine.wake()

    async def close(self) -> None:
        """Stop the engine; its process ends with it."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None


async def _first_answer(engine: Engine) -> RolloutGroup | Dropped:
    """The engine's answer about a blank image of 64 x 64 pixels."""
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        store = ImageStore(Path(folder))
        image = store.add(Image.new("RGB", (64, 64), "white"))
        question = Part("text", "What is in the image?")
        message = Message("user", (Part("image"), question))
        request = GenerationRequest(
            "hello",
            Prompt("hello", (message,), (image,)),
            1,
            temperature=0.0,
            max_tokens=2,
        )
        (group,) = await engine.generate([request])
        return group
