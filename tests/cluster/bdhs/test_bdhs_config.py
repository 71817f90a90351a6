"""The command line of `python -m cluster.generate bdhs`: what is set, what is refused, what is printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import progress
from cluster.generate import main
from cluster.jobs.bdhs_job import run, settings_of, spec_of
from common.config import PromptFile
from common.config.jobs import BdhsJobConfig
from common.data.datasets import SPEC
from common.errors import UserError
from tests.cluster.bdhs.scripted import bdhs_config, scripted


def test_overrides_take_effect(job: Callable[..., BdhsJobConfig]) -> None:
    asked = job("--rollout.bdhs.rho", "0.2", "--run.seed", "7", count=3)
    spec = spec_of(asked)
    assert (spec["rho"], spec["seed"]) == (0.2, 7)
    run(asked, scripted())
    written = json.loads((asked.generate.out / SPEC).read_text())
    assert (written["rho"], written["seed"]) == (0.2, 7)


def test_seeds_of_their_own(job: Callable[..., BdhsJobConfig]) -> None:
    asked = job("--seed", "7", "--rollout.bdhs.seed", "3", "--data.prompts.seed=5")
    assert settings_of(asked).seed == 3
    assert asked.scene_seed == 5


def test_rho_fits_the_demo_policy_unless_it_is_set(
    job: Callable[..., BdhsJobConfig], tmp_path: Path
) -> None:
    demo = bdhs_config(["bdhs", "--out", str(tmp_path)])
    assert settings_of(demo).rho == 0.5
    assert demo.scene_seed == 0
    spec = spec_of(demo)
    assert spec["prompts"] == {"kind": "shapes", "split": "train"}
    assert spec["count"] == 1000
    hidden = bdhs_config(["bdhs", "--out", str(tmp_path), "--rollout.bdhs.rho=0.99"])
    assert settings_of(hidden).rho == 0.99
    assert settings_of(job()).rho == 0.99


def test_a_preset_says_where_prompts_come_from(
    job: Callable[..., BdhsJobConfig], tmp_path: Path
) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(
        "[data]\nprompts = { kind = 'file', path = 'x' }\n"
        "[rollout]\nbdhs = { rho = 0.7, max_attempts = 3 }\n"
        "[learner]\nnum_steps = 5\n"
    )
    asked = job("--preset", str(preset), "--attempts=2", count=7)
    assert asked.data.prompts == PromptFile(path="x", rows=7)
    settings = settings_of(asked)
    assert (settings.rho, settings.max_attempts) == (0.7, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rho", "0.3", "--rollout.bdhs.rho", "0.2"], "--rho and --rollout.bdhs.rho"),
        (["--seed=1", "--run.seed=2"], "--seed and --run.seed"),
        (["--data.prompts.count=2"], "--count and --data.prompts.count"),
        (["--prompts=x", "--data.prompts.kind=shapes"], "--prompts and --data.prompts"),
        (["--rho", "2"], "--rho (rollout.bdhs.rho): "),
        (["--learner.num_steps=3"], "--learner.num_steps: expected a key that this"),
        (["--rollout.temperature=3"], "--rollout.temperature: expected a key that"),
        (["--rollout.bdhs.roh=3"], "unknown config key rollout.bdhs.roh; did you mean"),
    ],
)
def test_what_would_be_ignored_or_is_said_twice_is_refused(
    words: list[str], message: str, job: Callable[..., BdhsJobConfig]
) -> None:
    with pytest.raises(UserError) as error:
        job(*words)
    assert str(error.value).startswith(message)


def test_small_cache_blocks_unless_asked_otherwise(
    job: Callable[..., BdhsJobConfig],
) -> None:
    assert job().rollout.engine.block_size == 32
    assert job("--rollout.engine.block_size", "128").rollout.engine.block_size == 128


def test_the_log_says_how_fast_and_how_long(
    job: Callable[..., BdhsJobConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    run(job(), scripted())
    lines = capsys.readouterr().err.splitlines()
    pattern = r"bdhs: (\d+)/150, [\d.]+/s prompts, [\d.]+ pairs/s, (\d+) s left"
    reports = [line for line in lines if re.fullmatch(pattern, line)]
    assert len(reports) == 150
    last = re.fullmatch(pattern, reports[-1])
    # All done, and no time left.
    assert last is not None and last.groups() == ("150", "0")
    assert re.fullmatch(r"[\d.]+ prompts/s, [\d.]+ pairs/s", lines[-1])


def test_a_log_has_a_first_line_and_a_last_unless_the_job_is_short(
    job: Callable[..., BdhsJobConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for first_line_s, expected in (
        (0.0, ["bdhs: 1/150", "bdhs: 150/150"]),
        (600.0, []),
    ):
        monkeypatch.setattr(progress, "FIRST_LINE_S", first_line_s)
        run(job(out=str(first_line_s)), scripted())
        lines = capsys.readouterr().err.splitlines()
        reports = [line for line in lines if line.startswith("bdhs: ")]
        counts = [line.split(",")[0] for line in reports]
        assert counts == expected


def test_refusals_are_one_line_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    for words in (
        ["--rho", "2"],
        ["--variant", "blur"],
        ["--model", "/nowhere"],
        ["--prompts", "/nowhere"],
        ["--count", "0"],
        ["--loop.x", "1"],
    ):
        assert main(["bdhs", "--out", out, *words]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1


HELP = """
import sys
import cluster.generate

try:
    cluster.generate.main(["bdhs", "--help"])
except SystemExit:
    pass
print(sorted({"torch", "vllm", "ray", "transformers"} & set(sys.modules)))
"""


def test_help_loads_nothing_heavy() -> None:
    command = [sys.executable, "-c", HELP]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.rstrip().endswith("[]")
