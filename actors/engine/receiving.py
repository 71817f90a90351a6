"""How an engine takes weights and proves them, whole or in buckets from the learner: part of `VllmEngine`.

load_weights      check arrays -> shared memory -> swap between two steps, caches dropped -> version echo -> probe
receive_weights   first bucket is full -> swap, a bucket at a time -> version echo; then `prove`
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.bdhs.vision_features import VisionFeatures
from actors.engine.causes import failure_explained
from actors.engine.numerics_gate import NumericsGate
from actors.vllm_api import LoRARequest, current_platform
from actors.weights.adapter_push import adapter_request, shared_adapter, zero_adapter
from actors.weights.push_check import ExpectedPush
from actors.weights.sender import shared_weights
from actors.weights.shared_memory import in_thread
from actors.weights.streamed_push import (
    KeptTensors,
    StreamedPush,
    check_outcomes,
)
from common.checkpoint.layout import empty_model
from common.config import Lora
from common.protocols import Tensors
from common.push.meeting import EngineSeat, PushBroken, memory_id, network_id
from common.push.plan import PushPlan
from common.records import LoadReport, LogprobProbe, ProbeReading, WeightManifest


class Receiving(ABC):
    """What is the same for both engines; they say how weights are swapped."""

    _adapter: Lora | None
    _expected: ExpectedPush
    _features: VisionFeatures
    _gate: NumericsGate
    _kept: KeptTensors
    _lora_request: LoRARequest | None
    _model_path: str
    _num_workers: int
    _swap_lock: asyncio.Lock
    _timeout_s: float
    _tower_is_frozen: bool
    _version: int

    @property
    def weight_version(self) -> int:
        return self._version

    async def load_weights(
        self, manifest: WeightManifest, tensors: Tensors
    ) -> LoadReport:
        """Swap the weights and prove them.

        Raises:
            UserError: the tensors do not fit the manifest or the model; the old weights stay.
            RuntimeError: the engine echoes another version, disagrees with the probe, or takes too long.
        """
        started = time.perf_counter()
        self._expected.check(manifest, tensors)
        version = str(manifest.version)
        async with (
            self._load_limit(version),
            # Writing a large model takes seconds, during which requests go on.
            in_thread(self._shared(manifest, tensors)) as path,
            self._swap_lock,
        ):
            paused = time.perf_counter()
            with failure_explained():
                echo = await self._swap(partial(self._load, path), version)
            pause_s = time.perf_counter() - paused
            self._take_version(manifest.version, echo)
            # Adapters are on the language model only.
            if self._adapter is None:
                self._features.load(tensors)
            reading = await self._gate.prove(manifest)
        seconds = time.perf_counter() - started
        return LoadReport(manifest.version, reading, seconds, pause_s)

    async def _load(self, path: Path) -> None:
        """Load a weight file or an adapter's folder."""
        if self._adapter is None:
            await self._on_workers("swap_weights", str(path))
        else:
            await self._policy()
            await self._load_adapter(adapter_request(path, load=True))

    def _shared(
        self, manifest: WeightManifest, tensors: Tensors
    ) -> AbstractContextManager[Path]:
        """The tensors in shared memory, in the form that `_load` reads."""
        # Half of the limit remains for a copy of its own, when the engine that writes for all of a node hangs.
        patience_s = self._timeout_s / 2
        if self._adapter is None:
            return shared_weights(manifest, tensors, patience_s)
        return shared_adapter(manifest, tensors, self._adapter, patience_s)

    async def calibrate(
        self, probe: LogprobProbe, proven: ProbeReading | None = None
    ) -> ProbeReading:
        """How far engine and learner are apart while both hold the start policy; pushes are measured by that.

        Args:
            proven: what a push of version 0 measured, for an engine that starts after it.

        Raises:
            RuntimeError: so far that the engine holds another model.
        """
        async with self._swap_lock:
            return await self._gate.calibrate(probe, proven)

    async def check_push(self, version: int, plan: PushPlan) -> EngineSeat:
        """Refuse (UserError) a push that is not of this engine's model, before any of it is sent.

        An engine that hangs gives no answer. Nobody waits for it then but the learner: in the group of a push all
        engines would, without sampling.

        Returns:
            Where this engine is, and how many workers will come.
        """
        plan.check_model(version, self._model_path)
        self._expected.check_shapes(version, plan.shapes)
        await self._echo()
        device = str(current_platform.device_type)
        return EngineSeat(network_id(), device, self._num_workers, memory_id())

    async def receive_weights(self, push: StreamedPush) -> LoadReport:
        """Take weights from the learner as they come, between two engine steps; `prove` follows.

        Answers are sampled until the learner's first bucket is full. After a failure nothing more is sampled until a
        push succeeds: half of the weights may be new.

        Raises:
            PushBroken: the members of the push fell apart.
            RuntimeError: what came is damaged, the engine echoes another version or takes too long.
        """
        try:
            return await self._receive_weights(push)
        except PushBroken:
            raise
        # What ended here, such as vLLM's process, has told nobody.
        except BaseException as error:
            await asyncio.to_thread(push.tell_broken, f"an engine failed: {error}")
            raise

    async def _receive_weights(self, push: StreamedPush) -> LoadReport:
        started = time.perf_counter()
        await push.wait_until_ready(self._timeout_s)
        kept = push.names_on_vision_side(self._tower_is_frozen)
        version = str(push.version)
        async with self._load_limit(version), self._swap_lock:
            paused = time.perf_counter()
            update = push.update(kept, self._kept.path)
            load = partial(self._receive, push, update)
            with failure_explained():
                echo = await self._swap(load, version)
            with self._kept.taken() as tensors:
                self._features.load(tensors)
            pause_s = time.perf_counter() - paused
            self._take_version(push.version, echo)
        seconds = time.perf_counter() - started
        return LoadReport(push.version, None, seconds, pause_s)

    async def prove(self, manifest: WeightManifest, received: LoadReport) -> LoadReport:
        """The report of `receive_weights`, with the proof.

        Raises:
            RuntimeError: the engine runs other weights than the learner.
        """
        async with self._load_limit(str(manifest.version)), self._swap_lock:
            reading = await self._gate.prove(manifest)
        return replace(received, probe=reading)

    async def _receive(self, push: StreamedPush, update: dict[str, Any]) -> None:
        outcomes = await self._on_workers("receive_push", push.seat(), update)
        check_outcomes(push.version, outcomes)

    async def _policy(self) -> LoRARequest | None:
        """The adapter that every request carries, zeros before the first push; None if whole weights are pushed."""
        if self._adapter is not None and self._lora_request is None:
            zeros = zero_adapter(empty_model(self._model_path), self._adapter)
            # Loaded before the first request, so that no request is without an adapter.
            async with in_thread(self._shared(*zeros)) as folder:
                await self._load_adapter(adapter_request(folder, load=True))
                self._lora_request = adapter_request(folder, load=False)
        return self._lora_request

    def _take_version(self, version: int, echo: str) -> None:
        if echo != str(version):
            raise RuntimeError(
                f"weights {version}: expected the engine to echo this version, got {echo}; restart it"
            )
        self._version = version

    @asynccontextmanager
    async def _load_limit(self, version: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as late:
            raise RuntimeError(
                f"weights {version}: expected a load within {self._timeout_s:g} s, got none; see the engine's "
                "log or raise loop.call_timeout_s"
            ) from late

    @abstractmethod
    async def _swap(
        self,
        load: Callable[[], Awaitable[None]],
        version: str,
    ) -> str:
        """Let weights be loaded between two steps; drop prefix, multimodal and encoder caches.

        After an error nothing is sampled until another swap succeeds.

        Returns:
            The weight version that the engine then reports.
        """

    @abstractmethod
    async def _echo(self) -> str:
        """The weight version that the engine itself reports, between two steps."""

    @abstractmethod
    async def _load_adapter(self, adapter: LoRARequest) -> None:
        """Read the adapter's folder and replace the adapter of the same name."""

    @abstractmethod
    async def _on_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of `actors.weights.receiver.WeightReceiver` on every worker; one result per worker."""
