"""Variables of all actors: which a config may hold, which it may only name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.runtime.environment import passed_variables, with_variables
from common.config import RunConfig
from common.config.overrides import describe_keys, load_config
from common.config.run import SET_BY_US
from common.errors import UserError, plain_message

ROOT = Path(__file__).parents[2]


def load(*words: str, preset: Path | None = None) -> RunConfig:
    return load_config(preset, ["--mixture.online_fraction=1", *words])


def refused(*words: str) -> str:
    with pytest.raises(UserError) as error:
        load(*words)
    return plain_message(error.value)


def test_values_are_text_on_the_command_line_and_in_presets(tmp_path: Path) -> None:
    """On the command line a 4 is a word; a preset says what it means by quotes."""
    words = ("--cluster.env.NCCL_DEBUG", "INFO", "--cluster.env.NCCL_NTHREADS=4")
    assert load(*words).cluster.env == {"NCCL_DEBUG": "INFO", "NCCL_NTHREADS": "4"}
    preset = tmp_path / "run.toml"
    preset.write_text(
        '[cluster]\npass_env = ["HF_TOKEN"]\nenv = { NCCL_IB_PKEY = "2" }\n'
    )
    cluster = load("--cluster.env.A=b", preset=preset).cluster
    assert cluster.env == {"NCCL_IB_PKEY": "2", "A": "b"}
    assert cluster.pass_env == ("HF_TOKEN",)
    preset.write_text("[cluster.env]\nNCCL_NTHREADS = 4\n")
    with pytest.raises(UserError, match=r"cluster\.env\.NCCL_NTHREADS: .* string"):
        load(preset=preset)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("RANK", "set learner.num_ranks"),
        ("CUDA_VISIBLE_DEVICES", "set rollout.num_gpus and learner.num_gpus"),
        ("RAY_AUTH_MODE", "set it where `ray start` runs"),
        ("A-B", "letters, digits and underscores"),
        ("1A", "letters, digits and underscores"),
    ],
)
def test_names_that_are_not_the_users(name: str, remedy: str) -> None:
    assert remedy in refused(f"--cluster.env.{name}", "x")
    assert remedy in refused("--cluster.pass_env", f'["{name}"]')


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "my_password", "TOKEN"],
)
def test_secrets_are_not_written_down(name: str) -> None:
    """The refusal names the variable, not its value; by name alone it may be handed over."""
    message = refused(f"--cluster.env.{name}", "hunter2")
    assert f"got {name}; name it in cluster.pass_env" in message
    assert "hunter2" not in message
    assert load("--cluster.pass_env", f'["{name}"]').cluster.pass_env == (name,)


def test_a_password_in_an_address_is_a_secret() -> None:
    message = refused("--cluster.env.https_proxy", "http://me:hunter2@proxy:3128")
    assert "got https_proxy" in message and "hunter2" not in message
    assert load("--cluster.env.https_proxy", "http://proxy:3128").cluster.env


def test_words_that_only_look_like_secrets() -> None:
    for name in ("TOKENIZERS_PARALLELISM", "NCCL_IB_PKEY", "KEYBOARD"):
        assert load(f"--cluster.env.{name}", "x").cluster.env == {name: "x"}


def test_one_value_a_variable() -> None:
    message = refused("--cluster.env.A", "b", "--cluster.pass_env", "A")
    assert "got A in env and in pass_env" in message


def test_a_zero_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="zero bytes"):
        RunConfig.model_validate({"cluster": {"env": {"A": "b\0"}}})


def test_passed_variables_come_from_the_environment() -> None:
    cluster = load("--cluster.pass_env", "A,B").cluster
    assert passed_variables(cluster, {"A": "1", "B": "", "C": "3"}) == {
        "A": "1",
        "B": "",
    }
    with pytest.raises(UserError, match="expected B in the environment"):
        passed_variables(cluster, {"A": "1"})


def test_a_worker_is_made_after_its_variables_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    monkeypatch.setenv("SIGHTLINE_TEST", "before")

    class Worker:
        def __init__(self, number: int) -> None:
            self.seen = (number, os.environ["SIGHTLINE_TEST"])

    given = with_variables(Worker)
    assert given.__name__ == "Worker"
    assert given({"SIGHTLINE_TEST": "after"}, 7).seen == (7, "after")


def test_what_our_code_sets_is_refused() -> None:
    """Of what the rooms' code assigns to `os.environ`, nothing can be set by a config, where it would be lost."""
    texts = []
    for room in ("actors", "cluster", "common", "learner", "reward"):
        texts += [path.read_text() for path in (ROOT / room).rglob("*.py")]
    code = "\n".join(texts)
    names = set(re.findall(r'os\.environ\["(\w+)"\] = ', code))
    for constant in re.findall(r"os\.environ\[([A-Z_]+)\] = ", code):
        names |= set(re.findall(rf'^{constant} = "(\w+)"', code, re.MULTILINE))
    assert {"RANK", "VLLM_LOGGING_CONFIG_PATH"} <= names
    assert names <= set(SET_BY_US)


def test_help_shows_the_keys() -> None:
    text = describe_keys()
    assert "--cluster.env table of str  (default none)" in text
    assert "--cluster.pass_env list of str  (default none)" in text
