"""A judge over a real vLLM engine gives what transformers gives on the same model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from common import config
from common.data.images import ImageStore
from common.protocols import Question, Reply
from common.records import Dropped, RolloutGroup, Verdict
from reward.eyes.engine_eye import EngineEye
from reward.eyes.torch_eye import TorchEye
from reward.judges.prompts import Questions
from reward.judges.seeing import SeeingJudge
from tests.actors.engines import MAX_LENGTH, EnginePool, Run
from tests.actors.hf_policy import HfPolicy
from tests.reward.builders import group
from tests.tiny_models import make_prompt

pytestmark = pytest.mark.real

TEXTS = ("There is a red circle.", "There is a blue star.", "A ring is at the top.")


class Worker:
    """The engine as a rollout worker shows it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.generate, self.score = engine.generate, engine.score

    async def encode(self, answers: list[str]) -> list[tuple[int, ...]]:
        return [self._engine.encoder.encode_response(answer) for answer in answers]


@pytest.fixture
def eye(engines: EnginePool, policy_path: Path) -> EngineEye:
    return EngineEye([Worker(engines.get(policy_path, "async"))])


@pytest.fixture(scope="module")
def torch_eye(policy_path: Path) -> TorchEye:
    return TorchEye(config.TorchEye(path=str(policy_path), max_length=MAX_LENGTH))


def rolled(store: ImageStore, seed: int) -> RolloutGroup:
    return group(make_prompt(store, seed), *TEXTS, id=f"g{seed}")


def asking(**changes: Any) -> config.VlmJudge:
    values: dict[str, Any] = {
        "path": "judge",
        "reading": "logprobs",
        "template": "{{ first }} {{ second }}",
        **changes,
    }
    return config.VlmJudge(**values)


def test_pairwise_is_the_reading_of_transformers_log_probs(
    eye: EngineEye, policy_path: Path, store: ImageStore, run: Run
) -> None:
    """Written out: p(A) + p(tie) / 2 of the first tokens, in both orders, contradictions as ties, means over pairs."""
    settings = asking()
    groups = [rolled(store, seed) for seed in range(4)]
    verdicts = run(SeeingJudge("vlm", settings, eye).judge(groups))
    policy = HfPolicy(policy_path, MAX_LENGTH)
    first_tokens = [policy.encoder.encode_response(x)[0] for x in settings.labels]
    assert len(set(first_tokens)) == 3
    questions = Questions(settings)

    def part_of_first(rolled: RolloutGroup, one: int, other: int) -> float:
        asked = questions.compare(rolled.prompt, "x", TEXTS[one], TEXTS[other])
        logits = policy.logits(asked.prompt, ())[-1]
        a, _, tie = logits[first_tokens].softmax(-1).tolist()
        return float(a + tie / 2)

    num_decided = 0
    for rolled_group, verdict in zip(groups, verdicts, strict=True):
        parts: list[list[float]] = [[], [], []]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            forward = part_of_first(rolled_group, one, other)
            backward = 1 - part_of_first(rolled_group, other, one)
            contradicts = (forward > 0.5) != (backward > 0.5)
            value = 0.5 if contradicts else (forward + backward) / 2
            num_decided += not contradicts
            parts[one].append(value)
            parts[other].append(1 - value)
        expected = [sum(values) / 2 for values in parts]
        assert isinstance(verdict, Verdict)
        assert verdict.scores == pytest.approx(expected, abs=1e-4)
    assert num_decided > 0


@pytest.mark.parametrize("mode", ["tournament", "pointwise"])
def test_other_modes_agree_with_the_torch_eye(
    mode: str, eye: EngineEye, torch_eye: TorchEye, store: ImageStore, run: Run
) -> None:
    template = "{{ answer }}" if mode == "pointwise" else "{{ first }} {{ second }}"
    settings = asking(mode=mode, template=template)
    groups = [rolled(store, seed) for seed in range(3)]
    ours = run(SeeingJudge("vlm", settings, eye).judge(groups))
    theirs = run(SeeingJudge("vlm", settings, torch_eye).judge(groups))
    for one, other in zip(ours, theirs, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


def test_both_eyes_write_and_read_the_same(
    eye: EngineEye, torch_eye: TorchEye, store: ImageStore, run: Run
) -> None:
    """A greedy text, and options of several tokens of which the second one decides."""
    prompt = make_prompt(store, 1)
    questions = [
        Question(prompt, max_tokens=6),
        Question(prompt, ("There is a", "There star", "No")),
    ]
    text, choice = run(eye.ask(questions))
    same_text, same_choice = run(torch_eye.ask(questions))
    assert text == same_text and text.text
    assert choice.logprobs == pytest.approx(same_choice.logprobs, abs=1e-4)
    assert all(math.isfinite(logprob) for logprob in choice.logprobs)


def test_the_picture_decides(eye: EngineEye, store: ImageStore, run: Run) -> None:
    judge = SeeingJudge("vlm", asking(mode="pointwise", template="{{ answer }}"), eye)
    one, other = run(judge.judge([rolled(store, 1), rolled(store, 2)]))
    assert one.scores != other.scores


def test_a_prompt_that_does_not_fit_drops_its_group_alone(
    eye: EngineEye, store: ImageStore, run: Run
) -> None:
    judge = SeeingJudge("vlm", asking(), eye)
    long = group(make_prompt(store, 1), "a " * MAX_LENGTH, "short", id="long")
    dropped, verdict = run(judge.judge([long, rolled(store, 1)]))
    assert isinstance(dropped, Dropped) and dropped.reason == "judge_failed"
    assert "prompt_too_long" in dropped.detail
    assert isinstance(verdict, Verdict)


def test_replies_have_no_log_probs_when_texts_are_asked_for(
    eye: EngineEye, store: ImageStore, run: Run
) -> None:
    (reply,) = run(eye.ask([Question(make_prompt(store, 3), max_tokens=2)]))
    assert isinstance(reply, Reply) and reply.logprobs == ()
