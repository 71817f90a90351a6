"""Evaluation with policies that are functions: what is asked, what is measured, and the command around it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import evaluate as command
from cluster.measure import CHUNK, evaluate, evaluation_prompts
from common import config
from common.chat import ChatEncoder
from common.config import SHAPES_POLICY, Mixture, RunConfig
from common.images import ImageStore
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, Prompt, RolloutGroup, Verdict
from common.shapes.questions import answer_text
from common.weights import checkpoint_shapes
from reward.scorecard import Answers, Scorecard
from reward.worker import RewardWorker

SETTINGS = config.Evaluation(bootstrap_samples=50)
CONFIG = RunConfig(mixture=Mixture(online_fraction=1))


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


async def judge(groups: list[RolloutGroup]) -> list[Verdict | Dropped]:
    return await RewardWorker(CONFIG).judge(groups)


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[list[Prompt], list[Prompt]]:
    return evaluation_prompts("test", 12, SETTINGS, ImageStore(tmp_path / "images"))


def measure(
    policy: FakePolicy,
    prompts: tuple[list[Prompt], list[Prompt]],
    baseline: Answers | None = None,
    judge: Callable[[list[RolloutGroup]], Awaitable[list[Verdict | Dropped]]] = judge,
) -> tuple[Scorecard, Answers]:
    return asyncio.run(
        evaluate(policy.generate, judge, *prompts, baseline, SETTINGS, 40)
    )


def test_an_honest_policy_beats_the_dreamer(
    prompts: tuple[list[Prompt], list[Prompt]],
) -> None:
    """Scenes have at most 3 of the 6 shapes, so each dream invents at least 3; "always yes" is right half the time."""
    before, said_before = measure(FakePolicy(dreamer), prompts)
    after, said = measure(FakePolicy(honest), prompts, said_before)
    assert (
        before.chair_s,
        before.recall,
        before.pope_accuracy,
        before.pope_yes_ratio,
    ) == (1, 1, 0.5, 1)
    assert before.chair_i is not None and before.chair_i >= 0.5
    assert before.win_rate == 0.5
    assert (
        after.chair_s,
        after.chair_i,
        after.recall,
        after.pope_f1,
        after.win_rate,
    ) == (0, 0, 1, 1, 1)
    assert after.selection == 1 > before.selection
    assert (after.num_captions, after.num_questions, after.num_compared) == (12, 72, 12)
    back, _ = measure(FakePolicy(dreamer), prompts, said)
    assert back.win_rate == 0
    same, _ = measure(FakePolicy(honest), prompts, said)
    assert same.win_rate == 0.5


def test_asks_greedily_once_and_in_chunks(
    prompts: tuple[list[Prompt], list[Prompt]],
) -> None:
    policy, done = FakePolicy(honest), list[int]()
    asyncio.run(
        evaluate(policy.generate, judge, *prompts, None, SETTINGS, 40, done.append)
    )
    assert {
        (r.num_completions, r.temperature, r.max_tokens, r.prefix)
        for r in policy.requests
    } == {(1, 0.0, 40, "")}
    assert policy.chunks == done == [12, CHUNK, 72 - CHUNK]
    assert len({request.id for request in policy.requests}) == 84


def test_what_cannot_be_generated_or_compared_is_counted(
    prompts: tuple[list[Prompt], list[Prompt]],
) -> None:
    first, second = (prompt.id for prompt in prompts[0][:2])
    _, start = measure(FakePolicy(honest, refuses=(first,)), prompts)
    card, answers = measure(FakePolicy(honest, refuses=(second,)), prompts, start)
    assert card.dropped == {"prompt_too_long": 1, "no_baseline": 1}
    assert (card.num_captions, card.num_compared) == (11, 10)
    assert [drop.id for drop in answers.dropped] == [f"evaluation/{second}"]


def test_a_judge_without_verdicts_leaves_no_win_rate(
    prompts: tuple[list[Prompt], list[Prompt]],
) -> None:
    async def silent(groups: list[RolloutGroup]) -> list[Verdict | Dropped]:
        return [Dropped(group.id, "judge_failed") for group in groups]

    _, start = measure(FakePolicy(honest), prompts)
    card, _ = measure(FakePolicy(honest), prompts, start, silent)
    assert (card.win_rate, card.dropped, card.num_captions) == (
        None,
        {"judge_failed": 12},
        12,
    )


class FakeWorker:
    """Stands for RolloutWorker: the policy directory's name says who it is."""

    def __init__(self, config: RunConfig, index: int, model_path: str) -> None:
        self.policy = FakePolicy(
            {"honest": honest, "dreamer": dreamer}[Path(model_path).name]
        )
        self.generate = self.policy.generate
        self.score = self.policy.score

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class FakeRuntime:
    """Runs workers in this process and remembers what became of them."""

    log: list[str] = []  # noqa: RUF012

    def __init__(self, config: object) -> None:
        self.log.clear()

    def spawn(
        self, worker: type, *args: Any, name: str, num_cpus: float, num_gpus: float
    ) -> FakeRuntime:
        self.worker = worker(*args)
        self.log.append("spawn")
        return self

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self.worker, method)(*args)

    def stop(self, handle: object) -> None:
        self.log.append("stop")

    def shutdown(self) -> None:
        self.log.append("shutdown")


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fakes = (
        ("cluster.ray_runtime", "RayRuntime", FakeRuntime),
        ("actors.rollout", "RolloutWorker", FakeWorker),
    )
    for module, name, fake in fakes:
        stand_in = types.ModuleType(module)
        setattr(stand_in, name, fake)
        monkeypatch.setitem(sys.modules, module, stand_in)
    for name in ("honest", "dreamer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


def test_the_command_measures_both_and_writes_what_it_found(
    policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--scenes",
        "5",
        "--out",
        str(policies / "out" / "card.json"),
        "--samples",
        str(policies / "samples.html"),
    ]
    words += ["--evaluation.bootstrap_samples", "20"]
    assert (
        command.main(
            [str(policies / "honest"), "--baseline", str(policies / "dreamer"), *words]
        )
        == 0
    )
    assert FakeRuntime.log == ["spawn", "stop", "spawn", "stop", "shutdown"]
    cards = json.loads((policies / "out" / "card.json").read_text())
    assert Scorecard.model_validate(cards["policy"]).win_rate == 1
    assert Scorecard.model_validate(cards["start"]).win_rate == 0.5
    told = capsys.readouterr().out
    assert "CHAIR_i" in told
    assert cards["policy"]["grounding"]["accuracy"] == {
        "true": 1,
        "blank": 1,
        "shuffled": 1,
    }
    assert "WARNING preferences rest on words" in told and "grounding_gain" in told
    assert (
        "WARNING preferences rest on words" in (policies / "samples.html").read_text()
    )
    assert "made-up" in (policies / "samples.html").read_text()


def test_a_failing_policy_still_stops_the_runtime(
    policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("no engine")

    monkeypatch.setattr(FakeWorker, "start", broken)
    with pytest.raises(RuntimeError, match="no engine"):
        command.main([str(policies / "honest"), "--scenes", "2"])
    assert FakeRuntime.log == ["spawn", "stop", "shutdown"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "expected a Hugging Face directory"),
        (["{honest}", "--baseline", "nowhere"], "expected a Hugging Face directory"),
        (["{honest}", "--scenes", "0"], "expected at least 1, got 0"),
        (
            ["{honest}", "--evaluation.test_scene", "5"],
            "did you mean evaluation.test_scenes",
        ),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], message: str, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        command.main([word.format(honest=policies / "honest") for word in words]) == 2
    )
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "config.json",
            b"{broken",
            "expected config and processor that transformers can load",
        ),
        (
            "config.json",
            b"\xff\xfe",
            "expected config and processor that transformers can load",
        ),
        (
            "tokenizer.json",
            b"{",
            "expected config and processor that transformers can load",
        ),
        ("model.safetensors", b"cut off", "expected readable safetensors"),
    ],
)
def test_a_broken_policy_is_one_line(
    name: str,
    content: bytes,
    message: str,
    policies: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As an engine reads it: no learner looks at the checkpoint first."""
    path = Path(shutil.copytree(SHAPES_POLICY, policies / "policy"))
    (path / name).write_bytes(content)

    class Reader(FakeWorker):
        def __init__(self, config: RunConfig, index: int, model_path: str) -> None:
            ChatEncoder(model_path, 100)
            checkpoint_shapes(model_path)

    monkeypatch.setattr(sys.modules["actors.rollout"], "RolloutWorker", Reader)
    assert command.main([str(path), "--scenes", "2"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"error: model.path {path}") and message in said


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from cluster.evaluate import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'ray', 'vllm', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("[]")
    assert "POLICY_DIR" in done.stdout
