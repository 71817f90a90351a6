"""Paths of a configuration, and bare values that stand for a section."""

from pathlib import Path
from typing import Any

import pytest

from common.config import HeldOut, PolicyJudge, PromptFile, PromptsSuite
from common.config.overrides import load, load_config
from common.errors import UserError
from tests.common.config.trees import ONLINE, AllJobs, switched

PATHS = [
    "run.dir",
    "model.path",
    "data.offline.path",
    "evaluation.pairs",
    "learner.fast.reference_cache",
    "rollout.bdhs.similarity",
    "generate.out",
    "import_data.path",
    "import_data.out",
    "import_data.images",
    "inspect.directory",
    "inspect.out",
    "inspect.policy",
]


def value_at(config: AllJobs, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("key", PATHS)
def test_a_path_is_what_a_person_means(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert str(value_at(load(AllJobs, None, [f"--{key}=~/x"]), key)) == "/home/me/x"
    assert str(value_at(load(AllJobs, None, [f"--{key}=./~x"]), key)).endswith("~x")
    for word in ("", "  ", "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(UserError) as error:
            load(AllJobs, None, [f"--{key}={word}"])
        assert str(error.value).startswith(f"{key}: expected a "), word


def test_paths_inside_sections_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = switched(
        "--data.prompts.kind=file",
        "--data.prompts.path=~/prompts",
        '--data.offline.path=["~/a", "b"]',
        "--reward.judge.kind=policy",
        "--reward.judge.path=~/judge",
    )
    assert config.data.prompts == PromptFile(path="/home/me/prompts")
    assert config.data.offline is not None
    assert config.data.offline.paths == ("/home/me/a", "b")
    assert config.reward.judge == PolicyJudge(path="/home/me/judge")


def test_a_bare_value_stands_for_a_section(tmp_path: Path) -> None:
    words = [ONLINE, "--data.prompts", "x.jsonl", "--data.validation", "0.1"]
    data = load_config(None, [*words, "--data.test=200"]).data
    assert data.prompts == PromptFile(path="x.jsonl")
    assert data.validation == HeldOut(size=0.1)
    assert data.test == HeldOut(size=200)
    # Parts of it can be set, before it or after it.
    for more in (["--data.prompts.rows=5", *words], [*words, "--data.prompts.rows=5"]):
        assert load_config(None, more).data.prompts == PromptFile(
            path="x.jsonl", rows=5
        )
    preset = tmp_path / "p.toml"
    preset.write_text('[data]\nprompts = "y"\nvalidation = "z"\ntest = 7\n')
    data = load_config(preset, [ONLINE, "--data.prompts.rows=5"]).data
    assert data.prompts == PromptFile(path="y", rows=5)
    assert data.validation == PromptFile(path="z")
    assert data.test == HeldOut(size=7)
    # A run's own config.json says the same again.
    again = tmp_path / "config.json"
    again.write_text(load_config(preset, [ONLINE]).model_dump_json())
    assert load_config(again, []).data == load_config(preset, [ONLINE]).data


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--data.validation=0", "data.validation.size: expected a whole number of"),
        ("--data.validation=1.0", "or a share between 0 and 1, got 1.0"),
        ("--data.validation=-0.5", "or a share between 0 and 1, got -0.5"),
        ("--data.validation=true", "data.validation: expected a section of kind"),
        (
            "--data.prompts=7",
            "data.prompts: expected a section of kind shapes or tabletop or file",
        ),
        ("--data.test=0.5", "data.test = 0.5 needs data.prompts of a path"),
    ],
)
def test_bare_values_that_stand_for_nothing(word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, [ONLINE, word])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_prompts_that_are_held_out_are_measured() -> None:
    words = [ONLINE, "--data.prompts=x", "--data.validation=0.1"]
    assert load_config(None, words).evaluation.suites == (PromptsSuite(),)
    none = [*words, "--evaluation.suites=[]"]
    assert load_config(None, none).evaluation.suites == ()
