"""The benchmark of the whole loop: its arithmetic, that both sides are asked the same, and its command in small."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.online_cases import CASES, MODEL, PROMPTS, prepare
from benchmarks.online_judges import letters, oracle
from benchmarks.online_loop import summary
from benchmarks.online_peer import TimedJudge, row_of
from benchmarks.online_sides import compared, end_id, loop_figures, run_settings
from cluster.library import settings
from common.chat import encoder_of
from common.config import Model, RulesJudge
from common.config.judges import PythonJudge
from common.data.datasets import read_prompts, write_prompts
from common.data.images import ImageStore
from common.evaluation import Metric
from common.records import Completion, Prompt, RolloutGroup, Verdict
from common.shapes.prompts import caption_prompts
from reward.judges.factory import make_judge
from reward.suites.changes import Change
from reward.suites.scorecard import SuiteCard
from tests.real_runs import run_to_end

END = 1
WORDS = "There is a red circle at the top left."


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """Caption prompts as a run reads them from disk."""
    folder = tmp_path_factory.mktemp("prompts")
    store = ImageStore(folder / "pictures")
    write_prompts(folder / PROMPTS, caption_prompts("train", 3, 0, store))
    return read_prompts(folder / PROMPTS)


def test_counted_is_what_lies_between_the_ends_of_steps() -> None:
    """Ends at 110, 120, 124, 130; the first step warms up: 3 steps of 8 pairs in 20 seconds. Asked first at 103."""
    work = [
        ("rollout/0", "start", 100.0, 102.0, 0),
        ("rollout/0", "sample", 103.0, 106.0, 8),
        ("rollout/0", "sample", 106.0, 109.0, 8),
    ]
    for end in (110.0, 120.0, 124.0, 130.0):
        work.append(("learner", "train", end - 2, end, 8))
    figures = loop_figures(work, batch=8, warmup=1, started=91.0)
    assert figures == {
        "pairs_per_s": pytest.approx(1.2),
        "step_s": pytest.approx(20 / 3),
        "startup_s": 12.0,
    }


def test_ratios() -> None:
    """A quarter of the peer's 2 pairs/s are ties, so 1.5 are preferences."""
    sides: dict[str, dict[str, Any]] = {
        "peer": {"pairs_per_s": 2.0, "tie_frac": 0.25},
        "async": {
            "pairs_per_s": 6.0,
            "idle_frac": {"rollout/0": 0.4, "learner": 0.05},
        },
        "sync": {"pairs_per_s": 4.0},
    }
    quality = {"a": {"is_equal": True}, "b": {"is_equal": False}}
    figures = summary(sides, quality)
    assert figures["ratio"] == 4.0
    assert figures["ratio_with_ties"] == 3.0
    assert figures["ratio_sync"] == 2.67
    assert figures["async_over_sync"] == 1.5
    assert figures["bottleneck_idle"] == 0.05
    assert not figures["is_same_quality"]


def test_ties_alone_have_no_ratio() -> None:
    sides: dict[str, dict[str, Any]] = {
        "peer": {"pairs_per_s": 2.0, "tie_frac": 1.0},
        "sync": {"pairs_per_s": 4.0},
    }
    assert "ratio_sync" not in summary(sides, {})


def test_what_was_not_run_has_no_ratio() -> None:
    sides = {"sync": {"pairs_per_s": 4.0}}
    assert summary(sides, {}) == {"sides": sides}


def test_qualities_are_equal_where_zero_is_in_the_interval() -> None:
    changes = {
        "recall": Change(value=0.02, interval=(-0.01, 0.05), verdict=""),
        "chair_i": Change(value=0.1, interval=(0.05, 0.2), verdict="worse"),
    }
    peer = SuiteCard(
        metrics={"recall": Metric(0.82), "chair_i": Metric(0.3)}, changes=changes
    )
    ours = SuiteCard(metrics={"recall": Metric(0.8), "chair_i": Metric(0.2)})
    start = SuiteCard(metrics={"recall": Metric(0.7)})
    rows = compared(peer, ours, start)
    assert rows["recall"] == {
        "start": 0.7,
        "ours": 0.8,
        "peer": 0.82,
        "difference": 0.02,
        "interval": (-0.01, 0.05),
        "is_equal": True,
    }
    assert not rows["chair_i"]["is_equal"]
    assert rows["chair_i"]["start"] is None


def test_the_oracle_is_the_demos_judge_on_both_sides(prompts: list[Prompt]) -> None:
    """As our worker calls it, and as TRL's trainer does, with the columns of its rows."""
    ends = ((5, 6, END), (5, 6))
    group = RolloutGroup("g", prompts[0], (1,), 0, _completions(ends))
    by_rules = _scores(RulesJudge(), group)
    target = "benchmarks.online_judges:oracle"
    named = PythonJudge.model_validate({"kind": target, "end_id": END})
    assert _scores(named, group) == by_rules
    # The second one is cut off, which costs something.
    assert by_rules[0] > by_rules[1]
    row = row_of(prompts[0])
    answers = [[{"role": "assistant", "content": WORDS}]] * len(ends)
    by_trl = oracle(
        prompts=[row["prompt"]] * 2,
        completions=answers,
        completion_ids=ends,
        objects=[row["objects"]] * 2,
        seed=[row["seed"]] * 2,
        end_id=END,
    )
    assert tuple(by_trl) == by_rules


def _completions(ends: tuple[tuple[int, ...], ...]) -> tuple[Completion, ...]:
    completions = []
    for token_ids in ends:
        finish: Any = "stop" if END in token_ids else "length"
        completions.append(Completion(token_ids, WORDS, 0, 0, finish))
    return tuple(completions)


def _scores(settings: Any, group: RolloutGroup) -> tuple[float, ...]:
    (verdict,) = asyncio.run(make_judge(settings).judge([group]))
    assert isinstance(verdict, Verdict), verdict
    return verdict.scores


def test_both_sides_give_the_policy_the_same_tokens(prompts: list[Prompt]) -> None:
    """TRL's trainer puts the picture before the text, renders the chat and calls the processor."""
    encoder = encoder_of(Model())
    for prompt in prompts:
        row = row_of(prompt)
        (message,) = row["prompt"]
        text = {"type": "text", "text": message["content"]}
        message["content"] = [{"type": "image"}, text]
        rendered = encoder.processor.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )
        inputs = encoder.processor(
            text=[rendered], images=[[row["image"]]], add_special_tokens=False
        )
        assert isinstance(row["image"], Image.Image)
        expected = encoder.encode_prompt(prompt)
        assert list(inputs["input_ids"][0]) == list(expected.token_ids)


def test_equal_scores_of_a_prompt_are_ties() -> None:
    """First answers of three prompts, then second ones."""
    judge = TimedJudge(lambda scores: list(scores))
    assert judge(scores=[1.0, 2.0, 3.0, 1.0, 0.0, 3.0]) == [
        1.0,
        2.0,
        3.0,
        1.0,
        0.0,
        3.0,
    ]
    assert judge.num_ties == 2


def test_letters_differ() -> None:
    answers = [[{"role": "assistant", "content": text}] for text in ("ab", "zz", "")]
    assert letters(completions=answers, prompts=[]) == [97.5, 122.0, 0.0]


@pytest.mark.parametrize("side", ["async", "sync"])
def test_our_config_is_a_valid_one(side: str, tmp_path: Path) -> None:
    case = CASES["tiny"]
    prepare(case, tmp_path)
    config = settings(run_settings(case, side, tmp_path))
    assert config.loop.max_staleness == (side == "async")
    assert config.reward.judge.settings == {"end_id": end_id(tmp_path)}  # type: ignore[union-attr]
    assert config.learner.num_steps == case.steps
    assert config.loop.publish_interval == 8
    # TRL clips a sum over 32 prompts at 32, we a sum over 4 pairs.
    assert config.learner.optimizer.max_grad_norm == 8.0
    assert (tmp_path / MODEL).is_dir()


@pytest.mark.real
@pytest.mark.long
def test_the_command_says_what_it_promises(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.online_loop"]
    command += ["--sizes", "smoke", "--sides", "peer", "async", "--out", str(out)]
    result = json.loads(run_to_end(command, 900).splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert result["ratio"] > 0
    assert set(result["idle_frac"]) == {"rollout/0", "reward/0", "learner"}
    assert 0 <= result["bottleneck_idle"] < 1
    assert result["sides"]["peer"]["generate_s"] > 0
    assert result["sides"]["async"]["startup_s"] > 0
    # A random model's answers mean nothing.
    assert "quality" not in result
