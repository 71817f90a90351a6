"""Engines, judges and a learner of given speeds, without models: what the controller costs is what is left.

Their CPU time is counted apart: they live in the controller's process, where real ones do not.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.local_calls import LocalCalls, values_of
from benchmarks.simulated_clock import SimulatedClock
from common.protocols import GenerationRequest
from common.records import (
    Completion,
    Dropped,
    Judged,
    LoadReport,
    PreferencePair,
    Response,
    RolloutGroup,
    StepResult,
    Verdict,
    WeightManifest,
    WriteReport,
)
from common.seeding import derive_seed
from common.sources import ONLINE

PROMPT_TOKENS = tuple(range(600))
ANSWER_TOKENS = tuple(range(60))
TEXTS = (
    "There is a red circle at the top, and a blue star lies below it.",
    "There is a green square.",
)


class SimulatedHandle(LocalCalls):
    """A worker of this process, called as an actor is; `cpu_s` is what the worker itself has used.

    What it is given and what it answers is pickled and unpickled, as on the way to an actor: half of that is the
    controller's work. What Ray does beside it for a call is not simulated.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self.cpu_s = 0.0

    async def _run(self, method: str, args: Sequence[Any]) -> Any:
        sent = pickle.dumps(await values_of(args))
        begin = time.thread_time()
        values = pickle.loads(sent)
        answer: Callable[..., tuple[float, Any]] = getattr(self._worker, method)
        seconds, result = answer(*values)
        returned = pickle.dumps(result)
        self._charge(time.thread_time() - begin)
        await asyncio.sleep(seconds)
        return pickle.loads(returned)

    def _charge(self, cpu_s: float) -> None:
        self.cpu_s += cpu_s
        loop = asyncio.get_running_loop()
        if isinstance(loop, SimulatedClock):
            loop.free_s += cpu_s


class SimulatedEngine:
    """Samples a call's groups in `call_s`; two calls are in flight."""

    def __init__(self, call_s: float) -> None:
        self._call_s = call_s
        self._version = 0

    def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> tuple[float, list[RolloutGroup]]:
        """One group per request."""
        return self._call_s, [self._group(request) for request in requests]

    def _group(self, request: GenerationRequest) -> RolloutGroup:
        completions = []
        for text in TEXTS[: request.num_completions]:
            completion = Completion(
                ANSWER_TOKENS, text, self._version, self._version, "stop"
            )
            completions.append(completion)
        return RolloutGroup(
            request.id, request.prompt, PROMPT_TOKENS, 576, tuple(completions)
        )

    def load(
        self, manifest: WeightManifest, tensors: object
    ) -> tuple[float, LoadReport]:
        """Hold new weights at once."""
        self._version = manifest.version
        return 0.0, LoadReport(manifest.version, None, 0.0)


class SimulatedJudge:
    """Ranks a call in `call_s`; a share of groups ties."""

    def __init__(self, call_s: float, tie_share: float) -> None:
        self._call_s = call_s
        self._tie_share = tie_share

    def rank(self, groups: Sequence[RolloutGroup]) -> tuple[float, list[Judged]]:
        """Pairs, or ties by the hash of the group's id."""
        return self._call_s, [self._judged(group) for group in groups]

    def _judged(self, group: RolloutGroup) -> Judged:
        verdict = Verdict((1.0, 0.0))
        if derive_seed(group.id) % 1000 < 1000 * self._tie_share:
            tie = Dropped(group.id, "tie", "1.0 and 1.0")
            return Judged(group.id, dropped=tie, verdict=Verdict((1.0, 1.0)))
        chosen, rejected = group.completions
        pair = PreferencePair(
            group.id,
            group.prompt,
            Response(chosen.text, chosen.token_ids),
            Response(rejected.text, rejected.token_ids),
            ONLINE,
            chosen.min_weight_version,
            group.prompt_token_ids,
            (1.0, 0.0),
        )
        return Judged(group.id, (pair,), verdict=verdict, chosen=(0,), rejected=(1,))


class SimulatedLearner:
    """Trains a batch in `step_s` and publishes in `push_s`.

    Attributes:
        step_began: clock time of every step, in order.
        ages: staleness of a pair, in versions -> how many pairs.
    """

    def __init__(self, step_s: float, push_s: float) -> None:
        self._step_s = step_s
        self._push_s = push_s
        self._version = 0
        self.step_began: list[float] = []
        self.ages: Counter[int] = Counter()

    def step(
        self, step: int, pairs: Sequence[PreferencePair]
    ) -> tuple[float, tuple[StepResult, list[Dropped]]]:
        """All pairs are trained on."""
        self.step_began.append(asyncio.get_running_loop().time())
        for pair in pairs:
            assert pair.weight_version is not None
            self.ages[self._version - pair.weight_version] += 1
        ids = tuple(pair.id for pair in pairs)
        return self._step_s, (StepResult(step, {"loss": 0.7}, ids), [])

    def publish(
        self, version: int
    ) -> tuple[float, tuple[WeightManifest, Mapping[str, Any]]]:
        """A manifest of weights that nobody has."""
        self._version = version
        manifest = WeightManifest(version, f"{version:064}", 1, 1, float(version))
        return self._push_s, (manifest, {})

    def checkpoint_bytes(self, with_policy: bool) -> tuple[float, int]:
        """Nothing."""
        return 0.0, 0

    def written(self) -> tuple[float, WriteReport]:
        """Nothing is written beside the steps."""
        return 0.0, WriteReport()

    def save(self, directory: str) -> tuple[float, None]:
        """An empty folder in the place of the learner's state."""
        Path(directory).mkdir(parents=True)
        return 0.0, None

    def export(self, directory: str) -> tuple[float, None]:
        """An empty folder in the place of the policy."""
        return self.save(directory)
