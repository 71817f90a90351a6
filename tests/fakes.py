"""Stand-ins for the real parts, for tests that want speed. Each passes the contract tests of what it stands in for."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.bdhs.online import OnlineBdhsSampler
from actors.engine.numerics_gate import DEFAULT_LIMITS, NumericsGate
from benchmarks.local_calls import LocalCalls, values_of
from cluster.runtime.seated import look, seated
from common.config import RunConfig
from common.data.images import read
from common.errors import Refused
from common.protocols import GenerationRequest, Pulse, Sight, Tensors
from common.push.meeting import EngineSeat, Meeting, Place, PushBroken
from common.push.plan import PushPlan, TensorSpec
from common.records import (
    AnswerLogprobs,
    Completion,
    Dropped,
    LoadReport,
    LogprobProbe,
    PreferencePair,
    ProbeAnswer,
    ProbeReading,
    Prompt,
    RolloutGroup,
    StepResult,
    WeightManifest,
    WriteReport,
)
from common.seeding import derive_seed
from tests.probes import of_tokens

BOS, EOS, IMAGE_TOKEN = 1, 2, 4


class Died(Exception):
    """What a call to a dead worker raises, whose result may be an argument of another call."""

    def __init__(self, handle: LocalHandle) -> None:
        super().__init__("the fake has died")
        self.handle = handle


class LocalHandle(LocalCalls):
    """A worker in this process. Calls of one worker run one after another unless they are coroutines, as on Ray.

    `kill` and `hang` do to it what signals do to an actor's process.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.stopped = False
        self._lock = asyncio.Lock()
        self._dead = False
        self._calls: set[asyncio.Task[Any]] = set()
        self._hangs = False

    def kill(self) -> None:
        """End it: calls that run, and later ones, raise Died."""
        self._dead = True
        for call in self._calls:
            call.cancel()

    @property
    def is_dead(self) -> bool:
        return self._dead

    def hang(self) -> None:
        """Answer nothing any more."""
        self._hangs = True

    def death(self, error: BaseException) -> str | None:
        if isinstance(error, Died) and error.handle is self:
            return "the fake has died"
        return None

    async def _run(self, method: str, args: Sequence[Any]) -> Any:
        assert not self.stopped, f"{method} called on a stopped worker"
        values = await values_of(args)
        if self._dead:
            raise Died(self)
        call = asyncio.ensure_future(self._answer(method, values))
        self._calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            if self._dead:
                raise Died(self) from None
            call.cancel()
            raise
        finally:
            self._calls.discard(call)

    async def _answer(self, method: str, values: Sequence[Any]) -> Any:
        if self._hangs:
            await asyncio.Event().wait()
        function = getattr(self.worker, method)
        if inspect.iscoroutinefunction(function):
            return await function(*values)
        async with self._lock:
            await asyncio.sleep(0)
            return function(*values)


class LocalRuntime:
    """Runtime without Ray: plain objects in this process."""

    def __init__(self) -> None:
        self.handles: dict[str, LocalHandle] = {}
        self.shown: dict[str, float] = {}

    def spawn(
        self, worker: type, *args: Any, name: str, num_cpus: float, num_gpus: float
    ) -> LocalHandle:
        self.handles[name] = LocalHandle(seated(worker, ".")(*args))
        return self.handles[name]

    def survey_nodes(self, nonce_file: str) -> dict[str, Awaitable[Sight]]:
        async def sight() -> Sight:
            return look(nonce_file, ())

        return {"rollout/0": sight()}

    def show(self, values: Mapping[str, float]) -> None:
        self.shown = dict(values)

    def stop(self, handle: Any) -> None:
        handle.stopped = True

    async def make_room(self, name: str) -> None:
        return None

    async def bury(self, handle: Any, pulse: Pulse | None) -> None:
        handle.kill()

    def shutdown(self) -> None:
        for handle in self.handles.values():
            handle.stopped = True


class FakeMeetings:
    """Groups of pushes within this process: all members come, or none gets anything."""

    def __init__(self) -> None:
        self._num_here: Counter[str] = Counter()
        self._sent: dict[str, asyncio.Future[Tensors | None]] = {}
        self._broken: dict[str, str] = {}

    async def send(self, meeting: Meeting, tensors: Tensors) -> str:
        """Give the tensors to all others; says why not, where they do not come."""
        sent = self._future(meeting)
        end = time.monotonic() + meeting.timeout_s
        while self._num_here[meeting.key] < meeting.num_members - 1:
            broken = self._broken.get(meeting.key, "")
            if time.monotonic() > end:
                broken = f"not all {meeting.num_members} members came"
            if broken:
                sent.set_result(None)
                return broken
            await asyncio.sleep(0.001)
        sent.set_result(tensors)
        return ""

    def break_off(self, meeting: Meeting, reason: str) -> None:
        """Let the sender, and with it all others, hear that a member is gone."""
        self._broken[meeting.key] = reason

    async def receive(self, meeting: Meeting) -> Tensors:
        self._num_here[meeting.key] += 1
        tensors = await self._future(meeting)
        if tensors is None:
            raise PushBroken("a member did not come")
        return tensors

    def _future(self, meeting: Meeting) -> asyncio.Future[Tensors | None]:
        if meeting.key not in self._sent:
            self._sent[meeting.key] = asyncio.get_running_loop().create_future()
        return self._sent[meeting.key]


MEETINGS = FakeMeetings()
PLAN = PushPlan((TensorSpec("bias", "float32", (1,)),), 1 << 20, "fake")


class FakeEngine:
    """Engine whose words are drawn from `phrases`; log-probs depend on image content and on the weights."""

    def __init__(
        self,
        phrases: Sequence[str] = ("yes", "no"),
        delay_s: float = 0.0,
        max_length: int = 512,
    ) -> None:
        self._phrases = tuple(phrases)
        self._delay_s = delay_s
        self._max_length = max_length
        self._version = 0
        self._bias = 0.0
        self._asleep = False
        self._gate = NumericsGate(DEFAULT_LIMITS, self._score_probe)

    @property
    def weight_version(self) -> int:
        return self._version

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        # A real engine answers when it is woken, which may be never.
        assert not self._asleep, "asked while asleep"
        results = [self._complete(request) for request in requests]
        # New weights may arrive here, as in the middle of a real call.
        await asyncio.sleep(self._delay_s)
        return [self._with_last_version(result) for result in results]

    def _complete(self, request: GenerationRequest) -> RolloutGroup | Dropped:
        prompt_ids = self._read_prompt(request.id, request.prompt)
        if isinstance(prompt_ids, Dropped):
            return prompt_ids
        indices = range(request.num_completions)
        completions = [self._completion(request, index) for index in indices]
        return RolloutGroup(
            id=request.id,
            prompt=request.prompt,
            prompt_token_ids=prompt_ids,
            num_image_tokens=prompt_ids.count(IMAGE_TOKEN),
            completions=tuple(completions),
        )

    def _completion(self, request: GenerationRequest, index: int) -> Completion:
        seed = derive_seed(request.seed or 0, request.id, index, self._version)
        phrase = 0 if request.temperature == 0 else seed % len(self._phrases)
        text = self._phrases[phrase]
        tokens = _text_ids(text)[: request.max_tokens]
        is_whole = len(tokens) < request.max_tokens
        return Completion(
            token_ids=(*tokens, EOS) if is_whole else tokens,
            text=text,
            min_weight_version=self._version,
            max_weight_version=self._version,
            finish_reason="stop" if is_whole else "length",
        )

    def _read_prompt(self, id: str, prompt: Prompt) -> tuple[int, ...] | Dropped:
        """The prompt's token ids, or why it cannot be run."""
        try:
            for image in prompt.images:
                read(image)
            return self._prompt_ids(prompt)
        except Refused as error:
            return Dropped(id, error.reason, str(error))

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        parts = [part for message in prompt.messages for part in message.parts]
        num_slots = sum(part.kind == "image" for part in parts)
        if num_slots != len(prompt.images):
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: {len(prompt.images)} images for {num_slots} parts",
            )
        image_ids = (IMAGE_TOKEN,) * 4 * num_slots
        text = "".join(part.text for part in parts)
        ids = (BOS, *image_ids, *_text_ids(text))
        if len(ids) >= self._max_length:
            raise Refused("prompt_too_long", f"prompt {prompt.id}: {len(ids)} tokens")
        return ids

    def _with_last_version(
        self, result: RolloutGroup | Dropped
    ) -> RolloutGroup | Dropped:
        """The engine may hold newer weights by the time that a call ends."""
        if isinstance(result, Dropped):
            return result
        version = self._version
        completions = [
            replace(completion, max_weight_version=version)
            for completion in result.completions
        ]
        return replace(result, completions=tuple(completions))

    async def token_logprobs(
        self, prompt: Prompt, token_ids: Sequence[int]
    ) -> tuple[float, ...]:
        return fake_logprobs(prompt, token_ids, self._bias)

    async def score(
        self, answers: Sequence[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        results: list[tuple[float, ...] | Dropped] = []
        for prompt, text in answers:
            prompt_ids = self._read_prompt(prompt.id, prompt)
            if isinstance(prompt_ids, Dropped):
                results.append(prompt_ids)
            else:
                answer_ids = (*_text_ids(text), EOS)
                results.append(await self.token_logprobs(prompt, answer_ids))
        return results

    async def load_weights(
        self, manifest: WeightManifest, tensors: Tensors
    ) -> LoadReport:
        if manifest.checksum != fake_checksum(tensors):
            raise RuntimeError(
                f"version {manifest.version}: the checksum does not fit the tensors"
            )
        self.take(manifest.version, tensors)
        return await self.prove(manifest)

    def take(self, version: int, tensors: Tensors) -> None:
        self._version = version
        self._bias = float(tensors["bias"][0])

    async def prove(self, manifest: WeightManifest) -> LoadReport:
        reading = await self._gate.prove(manifest)
        return LoadReport(manifest.version, reading, 0.0)

    async def calibrate(
        self, probe: LogprobProbe, proven: ProbeReading | None = None
    ) -> ProbeReading:
        return await self._gate.calibrate(probe, proven)

    async def _score_probe(
        self, answers: Sequence[ProbeAnswer]
    ) -> list[AnswerLogprobs | None]:
        scored: list[AnswerLogprobs | None] = []
        for answer in answers:
            logprobs = await self.token_logprobs(answer.prompt, answer.token_ids)
            scored.append(of_tokens(answer.token_ids, logprobs))
        return scored

    async def sleep(self, level: int) -> None:
        self._asleep = True
        if level == 2:
            self._bias = float("nan")

    async def wake(self) -> None:
        self._asleep = False

    async def close(self) -> None:
        return None


def _text_ids(text: str) -> tuple[int, ...]:
    """One token per byte, after the special ones."""
    return tuple(10 + byte for byte in text.encode())


def fake_logprobs(
    prompt: Prompt, token_ids: Sequence[int], weight: float
) -> tuple[float, ...]:
    """A log-prob per token that depends on the images, on the weights and on the token."""
    hashes = [image.sha256 for image in prompt.images]
    of_images = derive_seed(*hashes) % 1000 / 1000
    return tuple(-1.0 - of_images - weight - token / 1000 for token in token_ids)


def fake_checksum(tensors: Tensors) -> str:
    parts = []
    for name in sorted(tensors):
        values = np.asarray(tensors[name]).tolist()
        parts.append(f"{name}{values}")
    return str(derive_seed(*parts))


class FakeRolloutWorker:
    """RolloutWorker over a FakeEngine. `phrases` may be set on the class by a test."""

    phrases: Sequence[str] = (
        "There is a red circle at the top.",
        "There is a blue star at the bottom.",
    )
    delay_s = 0.0

    def __init__(
        self, config: RunConfig, index: int, model_path: str | None = None
    ) -> None:
        self.engine = FakeEngine(self.phrases, self.delay_s)
        self.sleeps: list[int] = []
        self._bdhs = OnlineBdhsSampler(config, lambda prompt: 4)

    async def start(self) -> dict[str, Any]:
        return {"engine": "fake", "weight_version": self.engine.weight_version}

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        return await self.engine.generate(requests)

    async def sleep(self, level: int) -> None:
        self.sleeps.append(level)
        await self.engine.sleep(level)

    async def wake(self) -> None:
        await self.engine.wake()

    async def bdhs_pairs(
        self, groups: list[tuple[str, Prompt]]
    ) -> list[PreferencePair | Dropped]:
        return await self._bdhs.pairs(groups, self.engine.generate)

    async def score(
        self, answers: list[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        return await self.engine.score(answers)

    async def encode(self, answers: list[str]) -> list[tuple[int, ...]]:
        return [(*_text_ids(answer), EOS) for answer in answers]

    async def calibrate(
        self, probe: LogprobProbe, proven: ProbeReading | None = None
    ) -> ProbeReading:
        return await self.engine.calibrate(probe, proven)

    async def load(self, manifest: WeightManifest, tensors: Tensors) -> LoadReport:
        return await self.engine.load_weights(manifest, tensors)

    async def check_push(self, version: int, plan: PushPlan) -> EngineSeat:
        assert plan == PLAN
        return EngineSeat("here", "cpu", 1)

    async def receive(
        self, version: int, plan: PushPlan, meeting: Meeting, first_rank: int
    ) -> LoadReport:
        tensors = await MEETINGS.receive(meeting)
        self.engine.take(version, tensors)
        return LoadReport(version, None, 0.0)

    async def break_push(self, meeting: Meeting, reason: str) -> None:
        MEETINGS.break_off(meeting, reason)

    async def prove(self, manifest: WeightManifest, received: LoadReport) -> LoadReport:
        return await self.engine.prove(manifest)

    async def close(self) -> None:
        await self.engine.close()


class FakeLearner:
    """Counts what it is given; its one weight is the number of pairs it ever trained on."""

    step_s = 0.0

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        self.weight = 0
        self._rank = rank
        self._is_writing = False

    def rendezvous(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def start(self, master_address: str, master_port: int) -> dict[str, Any]:
        return {"device": "fake", "fallbacks": {"share_prompt": "a fake has no prompt"}}

    def set_probe(self, answers: Sequence[ProbeAnswer]) -> LogprobProbe:
        self._probe = tuple(answers)
        return LogprobProbe(self._probe, self._probe_logprobs())

    def _probe_logprobs(self) -> tuple[AnswerLogprobs, ...]:
        logprobs = []
        for answer in self._probe:
            values = fake_logprobs(answer.prompt, answer.token_ids, self.weight)
            logprobs.append(of_tokens(answer.token_ids, values))
        return tuple(logprobs)

    def prepare(self, step: int, rows: Mapping[int, PreferencePair]) -> None:
        return None

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        await asyncio.sleep(self.step_s)
        self.weight += len(pairs)
        ids = tuple(pair.id for pair in pairs)
        metrics = {"loss": 1.0 / step, "rewards/margins": float(step)}
        return StepResult(step, metrics, ids), []

    def rest(self) -> None:
        return None

    def plan_push(self) -> PushPlan:
        return PLAN

    def meeting_place(self, networks: list[str]) -> Place:
        return Place("127.0.0.1", 1, "cpu")

    async def push(
        self, version: int, meeting: Meeting
    ) -> tuple[WeightManifest | None, str]:
        manifest, tensors = self.publish(version)
        if manifest is None:
            return None, ""
        broken = await MEETINGS.send(meeting, tensors)
        return (None if broken else manifest), broken

    def publish(self, version: int) -> tuple[WeightManifest | None, Mapping[str, Any]]:
        if self._rank:
            return None, {}
        tensors = {"bias": np.array([float(self.weight)], dtype=np.float32)}
        manifest = WeightManifest(
            version,
            fake_checksum(tensors),
            num_tensors=1,
            num_bytes=4,
            change_norm=float(self.weight),
            probe=LogprobProbe(self._probe, self._probe_logprobs()),
        )
        return manifest, tensors

    def checkpoint_bytes(self, with_policy: bool) -> int:
        return 1

    def save(self, directory: str) -> None:
        self._write(directory, "weight.json", self.weight)

    def written(self) -> WriteReport | None:
        if self._is_writing:
            # Not yet: who asks once only does not wait.
            self._is_writing = False
            return None
        return WriteReport()

    def load(self, directory: str) -> list[str]:
        self.weight = json.loads((Path(directory) / "weight.json").read_text())
        return []

    def export(self, directory: str) -> None:
        # The time makes every export a different file, as another policy would be.
        content = {"weight": self.weight, "time": time.time()}
        self._write(directory, "config.json", content)

    def _write(self, directory: str, name: str, content: object) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / name).write_text(json.dumps(content))
        self._is_writing = True
