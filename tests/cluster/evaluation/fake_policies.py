"""Policies that are functions of the prompt, and the workers and the runtime that stand around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from common.config import RunConfig
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, Prompt, RolloutGroup
from common.shapes.questions import answer_text
from tests.fakes.runtime import LocalHandle, LocalRuntime


def honest(prompt: Prompt) -> str:
    return prompt.reference or ""


def dreamer(prompt: Prompt) -> str:
    """Says yes to everything and sees every shape everywhere, once."""
    if prompt.truth and "answer" in prompt.truth:
        return answer_text("yes")
    return "There is a circle, a square, a triangle, a star, a cross and a ring."


class FakePolicy:
    """Answers by a function of the prompt; refuses prompts named in `refuses`."""

    def __init__(
        self, say: Callable[[Prompt], str], refuses: tuple[str, ...] = ()
    ) -> None:
        self.say, self.refuses = say, refuses
        self.requests: list[GenerationRequest] = []
        self.chunks: list[int] = []

    async def score(
        self, answers: list[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        """Likes a true answer by as much as the policy is honest, whatever it is shown."""
        right = -0.5 if self.say is honest else -1.0
        return [
            (right if text == honest(prompt) else -1.0, -1.0)
            for prompt, text in answers
        ]

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        self.requests += requests
        self.chunks.append(len(requests))
        return [self._answer(request) for request in requests]

    def _answer(self, request: GenerationRequest) -> RolloutGroup | Dropped:
        if request.prompt.id in self.refuses:
            return Dropped(request.id, "prompt_too_long")
        text = self.say(request.prompt)
        return RolloutGroup(
            request.id, request.prompt, (1,), 0, (Completion((2,), text, 0, 0, "stop"),)
        )


class FakeWorker:
    """Stands for RolloutWorker: the policy directory's name says who it is."""

    def __init__(self, config: RunConfig, index: int, model_path: str) -> None:
        self.policy = FakePolicy(
            {"honest": honest, "dreamer": dreamer}[Path(model_path).name]
        )
        # Coroutine functions, as the handle expects of a method.
        self.generate = self.policy.generate
        self.score = self.policy.score

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class LoggingRuntime(LocalRuntime):
    """Runs workers in this process and remembers what became of them."""

    log: ClassVar[list[str]] = []

    def __init__(self, *_: object) -> None:
        super().__init__()
        self.log.clear()

    def spawn(
        self, worker: type, *args: Any, name: str, num_cpus: float, num_gpus: float
    ) -> LocalHandle:
        handle = super().spawn(
            worker, *args, name=name, num_cpus=num_cpus, num_gpus=num_gpus
        )
        self.log.append(f"spawn {name}")
        return handle

    def stop(self, handle: LocalHandle) -> None:
        super().stop(handle)
        self.log.append("stop")

    def shutdown(self) -> None:
        super().shutdown()
        self.log.append("shutdown")


SHAPES = ("--evaluation.suites", '["shapes"]')
WORDS = [*SHAPES, "--scenes", "5", "--evaluation.bootstrap_samples", "20"]
