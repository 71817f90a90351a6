"""`python -m cluster.evaluate` with policies that are functions: what it starts, prints and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import evaluate as command
from reward.suites.scorecard import Scorecard
from tests.cluster.evaluation.fake_policies import SHAPES, WORDS, LoggingRuntime


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
