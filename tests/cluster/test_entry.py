"""How the entry points end: one line on standard error, and a status that a script can tell apart."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster import evaluate, generate, import_data, report, train
from cluster.entry import exit_status
from cluster.flags import (
    BDHS_FLAGS,
    EXPORT_FLAGS,
    IMPORT_FLAGS,
    INSPECT_FLAGS,
    POVID_FLAGS,
)
from common.config import RunConfig
from common.config.flags import Flag
from common.config.jobs import (
    BdhsJobConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    PovidJobConfig,
)
from common.config.overrides import describe_keys
from common.errors import UserError


class RemoteError(UserError):
    """As Ray gives it back: its text is a traceback, the error itself its cause."""

    cause = UserError("expected a, got b; do c")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("expected x, got y"), 2, "error: expected x, got y\n"),
        (
            RemoteError("Traceback\nof another process"),
            2,
            "error: expected a, got b; do c\n",
        ),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
    ids=["user", "remote", "ctrl-c"],
)
def test_an_end_with_a_line(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def call() -> None:
        raise error

    assert exit_status(call, "stopped") == status
    assert capsys.readouterr() == ("", said)


def test_other_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(lambda: None, "stopped") == 0
    assert exit_status(lambda: 1, "stopped") == 1
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 // 0, "stopped")
    assert capsys.readouterr() == ("", "")


def test_every_entry_point_ends_so_on_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "config.json").touch()
    calls = (
        (
            train,
            "_run",
            [f"--run.dir={tmp_path / 'run'}", "--mixture.online_fraction=1"],
        ),
        (generate, "_run", ["bdhs", "--out", "out"]),
        (import_data, "run", ["mmpr", "x.jsonl", "--out", "out"]),
        (evaluate, "_run", [str(tmp_path)]),
        (report, "print_report", [str(tmp_path)]),
    )
    for module, name, words in calls:
        monkeypatch.setattr(module, name, interrupt)
        assert module.main(words) == 130
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("stopped" in said or "interrupted" in said)


def test_the_value_of_an_override_is_no_preset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--run.dir", "runs/x", "--mixture.online_fraction", "1", "--dry-run"]
    assert train.main(words) == 0
    assert "rollout" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["a.toml", "b.toml"], ["--nonsense", "3"]])
def test_words_that_nobody_knows_are_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (preset,) = Path("cluster/configs").glob("shapes_online.toml")
    assert train.main([str(preset), "--dry-run", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: expected --section.key value, got")
    assert said.count("\n") == 1


BDHS_NAMES = """out model prompts count seed variant rho attempts threshold temperature
similarity workers"""
POVID_NAMES = """out endpoint model-name corrupter prompts count seed kinds every-kind
max-length-ratio api-key-env send-image temperature max-tokens max-tokens-key concurrency
timeout retries price-in price-out"""
INSPECT_NAMES = """directory out count samples policy policy-count batch max-length
device"""
COMMANDS: list[tuple[type[RunConfig], tuple[Flag, ...], str]] = [
    (BdhsJobConfig, BDHS_FLAGS, BDHS_NAMES),
    (PovidJobConfig, POVID_FLAGS, POVID_NAMES),
    (ImportConfig, IMPORT_FLAGS, "path out images strip-prefix count"),
    (ExportConfig, EXPORT_FLAGS, "directory out"),
    (InspectConfig, INSPECT_FLAGS, INSPECT_NAMES),
]


@pytest.mark.parametrize(
    ("schema", "flags", "names"),
    COMMANDS,
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_short_flag_stands_for_a_key_that_its_command_reads(
    schema: type[RunConfig], flags: tuple[Flag, ...], names: str
) -> None:
    assert [flag.name.removeprefix("--") for flag in flags] == names.split()
    listed = describe_keys(schema)
    for flag in flags:
        assert f"--{flag.key} " in listed
        assert flag.otherwise is None or f"--{flag.otherwise} " in listed


@pytest.mark.parametrize("words", [["generate", "bdhs"], ["import_data", "export"]])
def test_help_lists_the_keys_in_an_instant(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name, command = words
    module = {"generate": generate, "import_data": import_data}[name]
    began = time.process_time()
    with pytest.raises(SystemExit):
        module.main([command, "--help"])
    assert time.process_time() - began < 1
    assert "(required)" in capsys.readouterr().out
