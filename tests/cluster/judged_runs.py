"""Runs whose judge sees through engines of its own, for tests with fakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cluster.runs import make_config
from tests.fakes.rollout import FakeRolloutWorker


class JudgingWorker(FakeRolloutWorker):
    """As a judge's engine it prefers the answer that names a circle, whatever its place."""

    async def score(self, answers: Any) -> Any:
        if answers and answers[0][1] not in ("A", "B", "tie"):
            return await super().score(answers)
        scores = []
        for prompt, option in answers:
            text = prompt.messages[-1].parts[-1].text
            wanted = "A" if prefers_first(text) else "B"
            scores.append((-0.1 if option == wanted else -5.0, -1.0))
        return scores


def prefers_first(text: str) -> bool:
    first, _, second = text.partition(" > ")
    return "circle" in first and "circle" not in second


def vlm(tmp_path: Path, num_engines: int = 2, **changes: Any) -> Any:
    judge = (
        f'{{ kind = "vlm", path = "judge", num_engines = {num_engines}, reading = "logprobs", '
        'template = "{{ first }} > {{ second }}" }'
    )
    return make_config(tmp_path, reward__judge=judge, **changes)
