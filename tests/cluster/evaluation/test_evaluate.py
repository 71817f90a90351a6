"""Evaluation with policies that are functions: what is asked, what is measured, and the command around it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster import evaluate as command
from cluster.evaluation import measure as measuring
from cluster.evaluation.chunks import CHUNK
from cluster.evaluation.measure import Evaluator
from cluster.evaluation.measured import Measured, read_measured, write_measured
from cluster.progress import ProgressReport
from cluster.runtime.clients import RewardClient, RolloutClient
from common import config
from common.chat import ChatEncoder
from common.checkpoint.files import tensor_shapes
from common.config import SHAPES_POLICY, Mixture, RunConfig
from common.data.images import ImageStore
from common.evaluation import Answers, Score
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, Prompt, RolloutGroup, Verdict
from common.shapes.questions import answer_text
from reward.suites.scorecard import Scorecard, SuiteCard
from reward.worker import RewardWorker
from tests.fakes import LocalHandle, LocalRuntime

SUITE = config.ShapesSuite(test_scenes=12, validation_scenes=5)
CONFIG = RunConfig(
    mixture=Mixture(online_fraction=1),
    rollout=config.Rollout(max_tokens=40),
    evaluation=config.Evaluation(
        suites=(SUITE,), bootstrap_samples=50, grounding_pairs=0
    ),
)
LIMIT_S = 30.0


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


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    return Evaluator(CONFIG, ImageStore(tmp_path / "images"))


def measure(
    policy: FakePolicy,
    evaluator: Evaluator,
    baseline: Answers | None = None,
    judge: object | None = None,
) -> Measured:
    async def run() -> Measured:
        rollout = RolloutClient(LocalHandle(policy), LIMIT_S)
        reward = RewardClient(LocalHandle(judge or RewardWorker(CONFIG)), LIMIT_S)
        return await evaluator.measure("test", [rollout], [reward], baseline, "test")

    return asyncio.run(run())


def shapes_card(measured: Measured) -> SuiteCard:
    return measured.card.suites["shapes"]


def test_an_honest_policy_beats_the_dreamer(evaluator: Evaluator) -> None:
    """Scenes have at most 3 of the 6 shapes, so each dream invents at least 3; "always yes" is right half the time."""
    dreaming = measure(FakePolicy(dreamer), evaluator)
    before = shapes_card(dreaming)
    assert before.value("chair_s") == 1
    assert before.value("recall") == 1
    assert before.value("pope_accuracy") == 0.5
    assert before.value("pope_yes_ratio") == 1
    chair_i = before.value("chair_i")
    assert chair_i is not None and chair_i >= 0.5
    assert before.value("win_rate") == 0.5

    seeing = measure(FakePolicy(honest), evaluator, dreaming.answers)
    after = shapes_card(seeing)
    assert after.value("chair_s") == 0
    assert after.value("chair_i") == 0
    assert after.value("recall") == 1
    assert after.value("pope_f1") == 1
    assert after.value("win_rate") == 1
    dreaming_score = evaluator.selection.score(dreaming.card)
    assert dreaming_score is not None and dreaming_score.value < 1
    assert evaluator.selection.score(seeing.card) == Score(1.0)
    assert after.counts["num_captions"] == 12
    assert after.counts["num_questions"] == 72
    assert after.counts["num_compared"] == 12

    back = measure(FakePolicy(dreamer), evaluator, seeing.answers)
    assert shapes_card(back).value("win_rate") == 0
    same = measure(FakePolicy(honest), evaluator, seeing.answers)
    assert shapes_card(same).value("win_rate") == 0.5


class CountingReport(ProgressReport):
    advances: ClassVar[list[int]] = []

    def advance(self, note: str = "", count: int = 1) -> None:
        self.advances.append(count)
        super().advance(note, count)


def test_asks_greedily_once_and_in_chunks(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "ProgressReport", CountingReport)
    monkeypatch.setattr(CountingReport, "advances", [])
    policy = FakePolicy(honest)
    measure(policy, evaluator)
    for request in policy.requests:
        assert request.num_completions == 1
        assert request.temperature == 0.0
        assert request.max_tokens == 40
        assert request.prefix == ""
    assert policy.chunks == CountingReport.advances == [12, CHUNK, 72 - CHUNK]
    assert len({request.id for request in policy.requests}) == 84


def test_what_cannot_be_generated_or_compared_is_counted(evaluator: Evaluator) -> None:
    first, second, *_ = evaluator.prompts("test")["shapes"]["captions"]
    start = measure(FakePolicy(honest, refuses=(first.id,)), evaluator)
    policy = FakePolicy(honest, refuses=(second.id,))
    measured = measure(policy, evaluator, start.answers)
    card = shapes_card(measured)
    assert card.dropped == {"prompt_too_long": 1, "no_baseline": 1}
    assert card.counts["num_captions"] == 11
    assert card.counts["num_compared"] == 10
    dropped = measured.answers.suites["shapes"].dropped
    assert [drop.id for drop in dropped] == [f"evaluation/{second.id}"]


class SilentJudge:
    async def judge(self, groups: list[RolloutGroup]) -> list[Verdict | Dropped]:
        return [Dropped(group.id, "judge_failed") for group in groups]


def test_a_judge_without_verdicts_leaves_no_win_rate(evaluator: Evaluator) -> None:
    start = measure(FakePolicy(honest), evaluator)
    measured = measure(FakePolicy(honest), evaluator, start.answers, SilentJudge())
    card = shapes_card(measured)
    assert card.value("win_rate") is None
    assert card.dropped == {"judge_failed": 12}
    assert card.counts["num_captions"] == 12


class FirstJudge:
    """Prefers what stands first, whatever it says."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}

    async def judge(self, groups: list[RolloutGroup]) -> list[Verdict | Dropped]:
        for group in groups:
            self.first[group.prompt.id] = group.completions[0].text
        return [Verdict((1.0, 0.0), ("first", "second"))] * len(groups)


def test_a_judge_of_places_finds_no_policy_better(evaluator: Evaluator) -> None:
    """Each policy's answer stands first for some prompts, and wins these."""
    judge = FirstJudge()
    start = measure(FakePolicy(dreamer), evaluator)
    measured = measure(FakePolicy(honest), evaluator, start.answers, judge)
    groups = measured.answers.suites["shapes"].tasks["captions"]
    won = [
        group.completions[0].text == judge.first[group.prompt.id] for group in groups
    ]
    assert len(set(won)) == 2
    assert shapes_card(measured).value("win_rate") == sum(won) / len(won)


def test_validation_asks_only_what_picks_the_checkpoint(evaluator: Evaluator) -> None:
    policy = FakePolicy(honest)
    client = RolloutClient(LocalHandle(policy), LIMIT_S)
    card = asyncio.run(evaluator.validate([client], (), Answers())).card
    assert policy.chunks == [5]
    assert evaluator.selection.score(card) == Score(1.0)
    metrics = card.suites["shapes"].metrics
    assert "chair_s" in metrics
    assert not {"pope_f1", "win_rate"} & set(metrics)


def test_what_was_measured_is_read_back(evaluator: Evaluator, tmp_path: Path) -> None:
    measured = measure(FakePolicy(dreamer), evaluator)
    write_measured(tmp_path / "start.json", measured)
    assert read_measured(tmp_path / "start.json") == measured


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


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fakes = (
        ("cluster.runtime.ray_runtime", "RayRuntime", LoggingRuntime),
        ("actors.rollout", "RolloutWorker", FakeWorker),
    )
    for module, name, fake in fakes:
        stand_in = types.ModuleType(module)
        setattr(stand_in, name, fake)
        monkeypatch.setitem(sys.modules, module, stand_in)
    # Directories are opened before any worker starts, so these hold a model, which the fakes do not read.
    for name in ("honest", "dreamer"):
        shutil.copytree(SHAPES_POLICY, tmp_path / name)
    return tmp_path


SHAPES = ("--evaluation.suites", '["shapes"]')


def test_the_command_measures_both_and_writes_what_it_measured(
    policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, samples = policies / "out" / "card.json", policies / "samples.html"
    words = [str(policies / "honest"), "--baseline", str(policies / "dreamer")]
    words += ["--scenes", "5", "--out", str(out), "--samples", str(samples)]
    words += [*SHAPES, "--evaluation.bootstrap_samples", "20"]
    assert command.main(words) == 0
    # The start policy is compared with nothing, so no judge is started for it.
    assert LoggingRuntime.log == [
        "spawn rollout/0",
        "stop",
        "spawn rollout/0",
        "spawn reward/0",
        "stop",
        "stop",
        "shutdown",
    ]
    content = json.loads(out.read_text())
    policy = Scorecard.model_validate(content["policy"])
    start = Scorecard.model_validate(content["start"])
    assert policy.suites["shapes"].value("win_rate") == 1
    assert policy.suites["shapes"].counts["num_captions"] == 5
    assert start.suites["shapes"].value("win_rate") == 0.5
    assert policy.grounding is not None
    assert policy.grounding.accuracy == {"true": 1, "blank": 1, "shuffled": 1}
    printed = capsys.readouterr().out
    warning = "WARNING preferences rest on words"
    assert "CHAIR_i" in printed
    assert warning in printed and "grounding_gain" in printed
    page = samples.read_text()
    assert warning in page
    assert "made-up" in page


class Killed(Exception):
    """The process is gone."""


def kill_after(num_calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the policies answer so many calls, all together."""
    calls_left = num_calls
    answer = FakePolicy.generate

    async def generate(
        self: FakePolicy, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        nonlocal calls_left
        if calls_left == 0:
            raise Killed
        calls_left -= 1
        return await answer(self, requests)

    monkeypatch.setattr(FakePolicy, "generate", generate)


WORDS = [*SHAPES, "--scenes", "5", "--evaluation.bootstrap_samples", "20"]


@pytest.mark.parametrize("num_calls", [1, 2, 3])
def test_a_killed_command_goes_on_and_comes_to_the_same(
    num_calls: int,
    policies: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two policies with a chunk of captions and one of questions each: killed in the first and in the second."""
    words = [str(policies / "honest"), "--baseline", str(policies / "dreamer"), *WORDS]
    whole = policies / "whole.json"
    assert command.main([*words, "--out", str(whole)]) == 0
    out = policies / "out"
    out.mkdir()
    with monkeypatch.context() as patch:
        kill_after(num_calls, patch)
        with pytest.raises(Killed):
            command.main([*words, "--out", str(out)])
    assert list((out / "scorecard.json.partial").iterdir())
    with monkeypatch.context() as patch:
        # What was answered is not asked again: the other calls are enough.
        kill_after(4 - num_calls, patch)
        # Settings that change no answer may differ.
        more = ["--rollout.num_workers", "2", "--evaluation.samples_shown", "3"]
        assert command.main([*words, *more, "--out", str(out)]) == 0
    assert (out / "scorecard.json").read_text() == whole.read_text()
    assert [path.name for path in out.iterdir()] == ["scorecard.json"]
    assert "spawn rollout/1" in LoggingRuntime.log


def test_what_another_policy_left_is_refused(
    policies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = policies / "card.json"
    kill_after(1, monkeypatch)
    with pytest.raises(Killed):
        command.main([str(policies / "honest"), *WORDS, "--out", str(out)])
    other = policies / "dreamer" / "tokenizer_config.json"
    other.write_text(other.read_text() + " ")
    for words in (["dreamer"], ["honest", "--rollout.max_tokens", "9"]):
        words = [str(policies / words[0]), *words[1:], *WORDS, "--out", str(out)]
        assert command.main(words) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert "expected what is left of an evaluation with this" in message
        assert "delete the file to begin again" in message


class BrokenJudge(RewardWorker):
    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        if not groups:
            return []
        raise ZeroDivisionError("division by zero\nin my judge")


def test_a_judge_that_raises_costs_the_win_rate_and_not_the_scorecard(
    policies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reward.worker.RewardWorker", BrokenJudge)
    words = [str(policies / "honest"), "--baseline", str(policies / "dreamer"), *WORDS]
    out = policies / "card.json"
    assert command.main([*words, "--out", str(out)]) == 0
    card = Scorecard.model_validate(json.loads(out.read_text())["policy"])
    suite_card = card.suites["shapes"]
    assert suite_card.value("chair_s") == 0
    assert suite_card.value("win_rate") is None
    assert suite_card.dropped == {"judge_failed": 5}
    reason = suite_card.missing["win_rate"]
    assert reason.startswith("nothing could be compared; dropped {'judge_failed': 5}")
    assert "division by zero" in reason
    assert f"policy: shapes.win_rate not measured: {reason}" in capsys.readouterr().out


def test_harm_is_said_loudly(
    policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(policies / "dreamer"), "--baseline", str(policies / "honest"), *WORDS]
    out, samples = policies / "card.json", policies / "samples.html"
    assert command.main([*words, "--out", str(out), "--samples", str(samples)]) == 0
    cards = json.loads(out.read_text())
    harm = cards["policy"]["harm"]
    assert harm["better_policy"] == "start"
    assert {"shapes.chair_s", "shapes.win_rate", "shapes.selection"} <= set(
        harm["worse"]
    )
    assert cards["start"]["harm"] is None
    change = cards["policy"]["suites"]["shapes"]["changes"]["chair_s"]
    assert change == {"value": 1.0, "interval": [1.0, 1.0], "verdict": "worse"}
    printed = capsys.readouterr().out
    line = "WORSE than the start policy: shapes.chair_s +1.000 (+1.000 – +1.000)"
    assert f"policy: {line}" in printed
    assert "the start policy is the better one" in printed
    page = samples.read_text()
    assert line in page
    assert "the start policy is the better one" in page


def test_what_a_run_selects_by_need_not_be_measured(policies: Path) -> None:
    words = [
        str(policies / "honest"),
        *WORDS,
        "--evaluation.select",
        "prompts.win_rate",
    ]
    assert command.main(words) == 0


def test_suites_and_their_sizes_come_from_the_preset(policies: Path) -> None:
    preset = policies / "preset.toml"
    preset.write_text('[evaluation]\nsuites = ["shapes"]\nbootstrap_samples = 20\n')
    out = policies / "card.json"
    words = ["--preset", str(preset), "--out", str(out)]
    words += ["--split", "validation", "--evaluation.suites.0.validation_scenes", "3"]
    assert command.main([str(policies / "honest"), *words]) == 0
    card = Scorecard.model_validate(json.loads(out.read_text())["policy"])
    assert card.suites["shapes"].counts["num_captions"] == 3
    assert card.suites["shapes"].counts["num_questions"] == 18


def test_a_failing_policy_still_stops_the_runtime(
    policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("no engine")

    monkeypatch.setattr(FakeWorker, "start", broken)
    with pytest.raises(RuntimeError, match="no engine"):
        command.main([str(policies / "honest"), "--scenes", "2", *SHAPES])
    assert LoggingRuntime.log == ["spawn rollout/0", "stop", "shutdown"]


async def hang(*_: object) -> None:
    await asyncio.sleep(1000)


@pytest.mark.parametrize(
    ("worker", "method", "peer"),
    [
        (FakeWorker, "start", "rollout worker"),
        (FakePolicy, "generate", "rollout worker"),
        (FakePolicy, "score", "rollout worker"),
    ],
)
def test_a_worker_that_never_answers_ends_the_command(
    worker: type,
    method: str,
    peer: str,
    policies: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(worker, method, hang)
    words = [str(policies / "honest"), "--baseline", str(policies / "dreamer")]
    words += ["--scenes", "2", *SHAPES, "--loop.call_timeout_s", "0.5"]
    assert command.main(words) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"error: {peer}: got no answer within 0.5 s")
    assert LoggingRuntime.log[-1] == "shutdown"


def test_a_judge_that_never_answers_costs_the_win_rate_alone(
    policies: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(RewardWorker, "judge", hang)
    words = [str(policies / "honest"), "--baseline", str(policies / "dreamer")]
    words += ["--scenes", "2", *SHAPES, "--loop.call_timeout_s", "0.5"]
    assert command.main(words) == 0
    table = capsys.readouterr().out
    assert "CHAIR_s" in table
    # Of the start policy alone, against itself.
    assert re.search(r"^win rate .*0\.500 .* –  +higher", table, re.MULTILINE)
    assert "policy: not counted {'judge_failed': 2}" in table
    assert "reward worker: got no answer within 0.5 s" in caplog.text
    assert LoggingRuntime.log[-1] == "shutdown"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "expected a Hugging Face model directory"),
        (
            ["{honest}", "--baseline", "nowhere"],
            "expected a Hugging Face model directory",
        ),
        (["{honest}", *SHAPES, "--scenes", "0"], "expected at least 1, got 0"),
        (["{honest}"], "expected suites with prompts of the test split"),
        (
            ["{honest}", *SHAPES, "--evaluation.suites.0.test_scenes", "0"],
            "expected suites with prompts of the test split",
        ),
        (
            ["{honest}", *SHAPES, "--evaluation.suites.0.test_scene", "5"],
            "did you mean evaluation.suites.",
        ),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], message: str, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest_policy = str(policies / "honest")
    filled_in = [word.replace("{honest}", honest_policy) for word in words]
    assert command.main(filled_in) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert "\n" not in printed


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
            tensor_shapes(model_path)

    monkeypatch.setattr(sys.modules["actors.rollout"], "RolloutWorker", Reader)
    assert command.main([str(path), "--scenes", "2", *SHAPES]) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith(f"error: model.path {path}")
    assert message in printed


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
