"""Measures policies in engines of their own, one policy at a time, for `cluster.evaluate`.

With an output file, what is got so far is kept beside it, in FILE.partial: a killed evaluation goes on where it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from cluster.evaluation.kept import Identity, KeptAnswers
from cluster.evaluation.measure import Evaluator
from cluster.evaluation.measured import Measured, read_measured, write_measured
from cluster.runtime.clients import RewardClient, RolloutClient
from common.config.jobs import EvaluateConfig
from common.evaluation import Answers
from common.fingerprint import model_hash
from common.protocols import Handle, Runtime
from common.records import Prompt


class PolicyMeasuring:
    """The policies of one `cluster.evaluate`."""

    def __init__(
        self,
        config: EvaluateConfig,
        evaluator: Evaluator,
        runtime: Runtime,
        out: Path | None,
    ) -> None:
        """`out` is the output file beside which unfinished results are kept."""
        self._config = config
        self._evaluator = evaluator
        self._runtime = runtime
        self._kept = None if out is None else kept_folder(out)

    async def run(self) -> dict[str, Measured]:
        """`start`, when there is a baseline, and `policy`, which is compared with it.

        Raises:
            UserError: a worker cannot be started or does not answer, or what is kept belongs to something else.
        """
        settings = self._config.evaluate
        measured: dict[str, Measured] = {}
        start: Answers | None = None
        # One policy at a time: the engines of two may not fit on the machine.
        if settings.baseline is not None:
            measured["start"] = await self._measure("start", settings.baseline, None)
            start = measured["start"].answers
        measured["policy"] = await self._measure("policy", settings.policy, start)
        return measured

    def forget(self) -> None:
        """Delete what was kept, once the results are written."""
        if self._kept is not None:
            shutil.rmtree(self._kept, ignore_errors=True)

    async def _measure(
        self,
        name: str,
        policy: Path,
        baseline: Answers | None,
    ) -> Measured:
        if self._kept is None:
            return await self._measure_in_engines(policy, baseline, None)
        # Before what is whole is read: it must be this policy's, too.
        kept = KeptAnswers(self._kept / f"{name}.jsonl", self._identity(policy))
        whole = self._kept / f"{name}.json"
        try:
            if whole.exists():
                return read_measured(whole)
            measured = await self._measure_in_engines(policy, baseline, kept)
            write_measured(whole, measured)
            return measured
        finally:
            kept.close()

    async def _measure_in_engines(
        self,
        policy: Path,
        baseline: Answers | None,
        kept: KeptAnswers | None,
    ) -> Measured:
        """Start workers for a policy, measure it, and stop them.

        `baseline` is None for the start policy, which is compared with nothing and needs no judge.
        """
        settings = self._config.evaluate
        handles: list[Handle] = []
        try:
            engines = self._spawn_engines(policy, handles)
            judges: list[RewardClient] = []
            if baseline is not None:
                judges = await self._start_judges(handles)
            await asyncio.gather(*[engine.start() for engine in engines])
            title = f"asking {policy}"
            measured = await self._evaluator.measure(
                settings.split,
                engines,
                judges,
                baseline,
                title,
                kept,
            )
            await asyncio.gather(*[engine.close() for engine in engines])
            return measured
        finally:
            for handle in handles:
                self._runtime.stop(handle)

    def _spawn_engines(
        self,
        policy: Path,
        handles: list[Handle],
    ) -> list[RolloutClient]:
        from actors.rollout import RolloutWorker

        rollout = self._config.rollout
        engines: list[RolloutClient] = []
        for index in range(rollout.num_workers):
            handle = self._runtime.spawn(
                RolloutWorker,
                self._config,
                index,
                str(policy),
                name=f"rollout/{index}",
                num_cpus=rollout.num_cpus,
                num_gpus=rollout.num_gpus,
            )
            handles.append(handle)
            engines.append(RolloutClient(handle, self._config.loop.call_timeout_s))
        return engines

    async def _start_judges(self, handles: list[Handle]) -> list[RewardClient]:
        """Reward workers, and before them the engines that their judge asks."""
        from actors.rollout import RolloutWorker
        from cluster.runtime.judge_engines import JudgeEngines
        from reward.eyes.factory import EyeTools
        from reward.worker import RewardWorker

        reward = self._config.reward
        judge_engines = JudgeEngines(self._config, self._runtime.spawn, RolloutWorker)
        handles += judge_engines.handles.values()
        await judge_engines.start()
        judges: list[RewardClient] = []
        for index in range(reward.num_workers):
            tools = EyeTools(
                judge_engines.clients,
                replies=None if self._kept is None else self._kept / f"judge-{index}",
                num_spenders=reward.num_workers,
            )
            handle = self._runtime.spawn(
                RewardWorker,
                self._config,
                None,
                tools,
                name=f"reward/{index}",
                num_cpus=reward.num_cpus,
                num_gpus=reward.num_gpus,
            )
            handles.append(handle)
            judges.append(RewardClient(handle, self._config.loop.call_timeout_s))
        await asyncio.gather(*[judge.start() for judge in judges])
        return judges

    def _identity(self, policy: Path) -> Identity:
        """What kept results belong to. The baseline is part of it: verdicts are beside its answers."""
        config = self._config
        baseline = config.evaluate.baseline
        settings = {
            "evaluation": config.evaluation.model_dump(
                mode="json", exclude={"samples_shown", "select"}
            ),
            "split": config.evaluate.split,
            "rollout": config.rollout.model_dump(mode="json", exclude={"num_workers"}),
            "model": config.model.model_dump(mode="json"),
            "judge": config.reward.judge.model_dump(mode="json"),
        }
        return {
            "policy": model_hash(policy),
            "baseline": "" if baseline is None else model_hash(baseline),
            "settings": json.dumps(settings, sort_keys=True),
            "prompts": _digest(self._prompts()),
        }

    def _prompts(self) -> Iterable[Prompt]:
        split = self._config.evaluate.split
        for asked in self._evaluator.asked(split):
            for prompts in asked.prompts.values():
                yield from prompts
            for pair in asked.pairs:
                yield pair.prompt
        for pairs in self._evaluator.gate(split).pairs.values():
            for pair in pairs:
                yield pair.prompt


def kept_folder(out: Path) -> Path:
    """Where an unfinished evaluation keeps what it has got."""
    return out.with_name(f"{out.name}.partial")


def _digest(prompts: Iterable[Prompt]) -> str:
    """A hash of what is asked, pictures included."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.id.encode())
        for image in prompt.images:
            digest.update(image.sha256.encode())
        for message in prompt.messages:
            for part in message.parts:
                digest.update(f"{message.role}{part.kind}{part.text}".encode())
    return digest.hexdigest()
