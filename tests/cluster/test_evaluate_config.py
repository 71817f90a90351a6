"""Which config `cluster.evaluate` measures by: its flags, a preset, the policy's run, or the shapes world's."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cluster import evaluate
from cluster.evaluate import WORLD_PRESETS, config_of, preset_of
from cluster.flags import EVALUATE_FLAGS
from common.config import (
    SHAPES_POLICY,
    HeldOut,
    PolicyJudge,
    PromptFile,
    PromptsSuite,
    RunConfig,
    ShapesSuite,
)
from common.config.jobs import EvaluateConfig
from common.config.overrides import describe_keys, load_config
from common.errors import UserError

SHAPES = ("--evaluation.suites", '["shapes"]')


def test_every_short_flag_stands_for_a_key_that_the_command_reads() -> None:
    names = [flag.name for flag in EVALUATE_FLAGS]
    assert names == [
        "policy",
        "--baseline",
        "--split",
        "--scenes",
        "--out",
        "--samples",
    ]
    listed = describe_keys(EvaluateConfig)
    for flag in EVALUATE_FLAGS:
        assert f"--{flag.key} " in listed


def test_help_lists_the_keys_in_an_instant(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert time.process_time() - began < 1
    assert "--evaluation.suites.N.test_scenes int" in capsys.readouterr().out


def test_flags_and_keys_are_one_tree() -> None:
    words = ["a", "--baseline", "b", "--split=validation", "--out", "c.json"]
    config = config_of([*words, "--evaluate.samples", "d.html", *SHAPES])
    settings = config.evaluate
    assert settings.policy == Path("a")
    assert settings.baseline == Path("b")
    assert settings.split == "validation"
    assert settings.out == Path("c.json")
    assert settings.samples == Path("d.html")
    assert config.evaluation.suites == (ShapesSuite(),)


def test_scenes_are_those_of_the_split() -> None:
    of_test = config_of(["a", "--scenes", "7", *SHAPES])
    assert of_test.evaluation.suites == (ShapesSuite(test_scenes=7),)
    words = ["a", "--scenes", "7", "--split", "validation", *SHAPES]
    of_validation = config_of(words)
    assert of_validation.evaluation.suites == (ShapesSuite(validation_scenes=7),)


def test_a_preset_need_not_have_its_offline_pairs() -> None:
    config = config_of(["a", "--preset", "cluster/configs/shapes_mixed.toml"])
    assert config.rollout.max_tokens == 72
    assert config.evaluation.suites == (ShapesSuite(),)


def write_run(folder: Path) -> None:
    """Leave what a run leaves: its config beside its policy."""
    words = ["--mixture.online_fraction=1", "--reward.judge.kind=policy"]
    config = load_config(None, [*words, *SHAPES])
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "policy").mkdir()
    # Of the model, not of a run.
    (folder / "policy" / "config.json").write_text('{"model_type": "llava"}')


def test_a_runs_policy_is_measured_as_its_run_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    config = config_of([str(tmp_path / "policy")])
    assert config.evaluation.suites == (ShapesSuite(),)
    assert isinstance(config.reward.judge, PolicyJudge)
    said = f"measured as {tmp_path / 'config.json'} says\n"
    assert capsys.readouterr().err == said
    overridden = config_of([str(tmp_path / "policy"), "--rollout.max_tokens=5"])
    assert overridden.rollout.max_tokens == 5


def test_a_checkpoints_policy_belongs_to_its_run(tmp_path: Path) -> None:
    write_run(tmp_path)
    policy = tmp_path / "checkpoints" / "step_000020" / "policy"
    assert preset_of(policy) == tmp_path / "config.json"


def test_only_the_shapes_policy_is_asked_about_shapes_unbidden(tmp_path: Path) -> None:
    assert preset_of(Path(SHAPES_POLICY)) == WORLD_PRESETS[SHAPES_POLICY]
    assert config_of([SHAPES_POLICY]).evaluation.suites == (ShapesSuite(),)
    # The config of a model above the folder is no run's.
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    assert preset_of(tmp_path / "policy") is None
    assert config_of([str(tmp_path / "policy")]).evaluation.suites == ()


def test_a_given_preset_wins_over_the_runs(tmp_path: Path) -> None:
    write_run(tmp_path)
    preset = tmp_path / "other.toml"
    preset.write_text("[rollout]\nmax_tokens = 9\n")
    config = config_of([str(tmp_path / "policy"), "--preset", str(preset)])
    assert config.rollout.max_tokens == 9
    assert config.evaluation.suites == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["a", "--split", "train"],
            "--split (evaluate.split): Input should be 'validation' or 'test', got 'train'",
        ),
        (
            ["a", *SHAPES, "--scenes", "0"],
            "--scenes (evaluate.scenes): expected at least 1, got 0",
        ),
        (
            ["a", "--out", "b", "--evaluate.out", "c"],
            "--out and --evaluate.out: expected one value of evaluate.out, got two that differ; give one of them",
        ),
        (
            ["a", "--evaluation.suites.0.scenes", "5"],
            'evaluation.suites: expected a kind in every suite; add one, such as kind = "shapes", '
            "got [{'scenes': 5}]",
        ),
        (
            ["a", *SHAPES, "--evaluation.suites.0.test_scene", "5"],
            "unknown config key evaluation.suites.0.test_scene; did you mean evaluation.suites.N.test_scenes?",
        ),
    ],
)
def test_wrong_words_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of(words)
    assert str(caught.value) == message


def test_a_key_that_is_not_read_is_refused() -> None:
    with pytest.raises(UserError, match="expected a key that this command reads"):
        config_of(["a", *SHAPES, "--learner.num_steps", "3"])


def test_every_run_config_is_read(tmp_path: Path) -> None:
    """All sections of a run's config.json are known to the command's tree."""
    assert set(RunConfig.model_fields) < set(EvaluateConfig.model_fields)


def test_suites_of_several_kinds_stand_side_by_side(tmp_path: Path) -> None:
    """On the command line and in a preset, by bare name or as a section; an entry keeps its kind's own settings."""
    suites = '["shapes", { kind = "prompts", limit = 7 }]'
    expected = (ShapesSuite(), PromptsSuite(limit=7))
    assert config_of(["a", "--evaluation.suites", suites]).evaluation.suites == expected
    preset = tmp_path / "preset.toml"
    preset.write_text(f"[evaluation]\nsuites = {suites}\n")
    config = config_of(["a", "--preset", str(preset)])
    assert config.evaluation.suites == expected
    word = "--evaluation.suites.1.limit=9"
    changed = config_of(["a", "--preset", str(preset), word])
    assert changed.evaluation.suites == (ShapesSuite(), PromptsSuite(limit=9))


@pytest.mark.parametrize(
    ("suites", "line"),
    [
        ('["coco"]', "got 'coco'"),
        (
            '["shape"]',
            "evaluation.suites.0.kind: expected shapes or tabletop or prompts",
        ),
        ('[{ kind = "prompts", test_scenes = 3 }]', "evaluation.suites.N.kind is prom"),
        ("[{ limit = 3 }]", "evaluation.suites: expected a kind in every suite"),
        ('["prompts", "prompts"]', "expected different names, got prompts, prompts"),
        ('[{ kind = "prompts", limit = true }]', "suites.0.limit: expected a number"),
    ],
)
def test_a_suite_that_is_none_is_one_line(suites: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        config_of(["a", "--evaluation.suites", suites])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_and_prompts_of_ones_own(tmp_path: Path) -> None:
    words = ["--model.path", "m", "--data.prompts", "mine.jsonl"]
    config = config_of(words)
    assert config.evaluate.policy == Path("m")
    assert config.data.test == PromptFile(path="mine.jsonl")
    assert config.evaluation.suites == (PromptsSuite(),)
    validation = config_of([*words, "--split=validation", "--data.prompts.rows=5"])
    assert validation.data.validation == PromptFile(path="mine.jsonl", rows=5)
    assert validation.data.test is None
    # Others that are named are others.
    held_out = config_of([*words, "--data.test=0.5"])
    assert held_out.data.test == HeldOut(size=0.5)
    shapes = config_of([*words, *SHAPES])
    assert shapes.evaluation.suites == (ShapesSuite(),)


def test_one_policy_is_named() -> None:
    with pytest.raises(UserError, match=r"POLICY_DIR and --model.path: expected one"):
        config_of(["a", "--model.path=b"])
    with pytest.raises(UserError, match=r"policy \(evaluate\.policy\): expected a"):
        config_of(["--data.prompts=x"])


@pytest.mark.parametrize("wrap", [False, True])
def test_code_that_only_a_runs_config_names_is_not_started(
    tmp_path: Path, wrap: bool
) -> None:
    """A run directory may come from anybody, and a target may be any function of this machine."""
    judge: dict[str, object] = {"kind": "python", "target": "os:system"}
    if wrap:
        judge = {"kind": "ensemble", "members": [{"judge": judge}]}
    config = load_config(None, ["--mixture.online_fraction=1"]).model_dump(mode="json")
    config["reward"]["judge"] = judge
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(config))
    config_of([str(policy), *SHAPES])
    words = [str(policy), "--baseline", "b", *SHAPES]
    with pytest.raises(UserError, match="names os:system and nothing else asked"):
        config_of(words)
    config_of([*words, "--reward.judge.kind", "my_judge:Mine"])
    # Words about it do not name it.
    if not wrap:
        for word in ("--reward.judge.timeout_s=5", "--reward.judge.kind=python"):
            with pytest.raises(UserError, match="names os:system and nothing else"):
                config_of([*words, word])
        config_of([*words, "--reward.judge.kind=os:system"])


def test_suites_may_be_written_as_json() -> None:
    suites = '["prompts", {"kind": "shapes", "test_scenes": 7}]'
    config = config_of(["a", "--evaluation.suites", suites])
    assert [suite.kind for suite in config.evaluation.suites] == ["prompts", "shapes"]
    assert config.evaluation.suites[1].test_scenes == 7
