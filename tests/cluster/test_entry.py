"""How the entry points end: one line on standard error, and a status that a script can tell apart."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import evaluate, generate, import_data, report, train
from cluster.entry import FILE_TROUBLES, exit_status
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
from common.paths import replace_directory


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
        (generate, "make_set", ["bdhs", "--out", "out"]),
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
    (ImportConfig, IMPORT_FLAGS, "path out images strip-prefix split count"),
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


# Files and folders that cannot be used.


def status_of(error: BaseException) -> int:
    def call() -> None:
        raise error

    return exit_status(call, "stopped")


class RemoteFileError(OSError):
    """As Ray gives it back: an error of the same class without its fields, around the error itself."""

    cause = OSError(errno.ENOSPC, "No space left on device", "/data/step.pt")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "", "/data/x"),
            "/data/x: expected room to write, got 'No space left on device'; free some, or choose another place, and "
            "run it again",
        ),
        (
            OSError(errno.ENOSPC, ""),
            "an output: expected room to write, got 'No space left on device'; free some, or choose another place, "
            "and run it again",
        ),
        (
            OSError(errno.EISDIR, "", b"/data/.x.partial", None, "/data/x"),
            "/data/x: expected a file, got 'Is a directory'; give the name of a file, not of a folder",
        ),
        (
            RemoteFileError("Traceback\nof another process"),
            "/data/step.pt: expected room to write, got 'No space left on device'; free some, or choose another "
            "place, and run it again",
        ),
    ],
    ids=["path", "no path", "two paths", "remote"],
)
def test_trouble_with_a_file_is_one_line(
    error: OSError, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(error) == 2
    assert capsys.readouterr() == ("", f"error: {said}\n")


@pytest.mark.parametrize("number", sorted(FILE_TROUBLES))
def test_every_trouble_names_place_cause_and_remedy(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(OSError(number, "", "/data/x")) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: /data/x: expected ") and said.count("\n") == 1
    assert f", got {os.strerror(number)!r}; " in said


@pytest.mark.parametrize(
    "error",
    [
        # About a program's own file descriptors, a peer, or nothing that is known: bugs, until somebody has looked.
        OSError(errno.EBADF, "", "/data/x"),
        OSError(errno.EINVAL, "", "/data/x"),
        ConnectionRefusedError(errno.ECONNREFUSED, ""),
        PermissionError(errno.EPERM, ""),
        OSError("words"),
        FileNotFoundError(),
    ],
    ids=repr,
)
def test_other_errors_of_the_system_keep_their_traceback(error: OSError) -> None:
    with pytest.raises(type(error)) as raised:
        status_of(error)
    assert raised.value is error


def test_debugging_keeps_every_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        status_of(FileNotFoundError(errno.ENOENT, "", "/data/x"))


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RuntimeError("I/O error: No space left on device (os error 28)"), 28),
        (OSError(errno.EROFS, ""), errno.EROFS),
    ],
)
def test_an_output_names_itself_whoever_writes_it(
    error: Exception, number: int, tmp_path: Path
) -> None:
    """safetensors says it in Rust's words, the system without a path."""
    with pytest.raises(OSError) as raised, replace_directory(tmp_path / "policy"):
        raise error
    assert raised.value.errno == number
    assert raised.value.filename == str(tmp_path / "policy")


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, replace_directory(tmp_path / "policy"):
        raise FileNotFoundError(errno.ENOENT, "", "/data/source")
    assert raised.value.filename == "/data/source"


# Paths.


def test_home_is_home_in_every_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert report.main(["~/run"]) == 2
    assert f"error: {tmp_path}/run/scorecard.json: " in capsys.readouterr().err
    assert evaluate.main(["~/policy"]) == 2
    assert f"config.json, got {tmp_path}/policy; " in capsys.readouterr().err
    (tmp_path / "preset.toml").write_text("[run]\ndir = '~/runs'\n")
    words = ["~/preset.toml", "--mixture.online_fraction=1", "--dry-run"]
    assert train.main(words) == 0
    words = ["bdhs", "--out=~/pairs", "--preset=~/preset.toml"]
    config = generate.config_of(words)
    assert config.generate.out == tmp_path / "pairs"
    assert config.run.dir == tmp_path / "runs"
    capsys.readouterr()
    assert report.main(["~nobody-of-this-name/run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: run_dir: expected a home folder ~nobody-of-this-")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--run.dir", ""], ["--run.dir="], ["--run.dir", " "]]
)
def test_no_folder_is_not_this_folder(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--mixture.online_fraction=1", "--dry-run", *words]) == 2
    assert "run.dir: expected a path, such as runs/mine" in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly() -> None:
    """`… | head`: the reader leaves before the last line."""
    code = (
        "import sys; from cluster.entry import exit_status\n"
        "def call():\n    for _ in range(100_000): print('line')\n"
        "sys.exit(exit_status(call, ''))"
    )
    command = f'{sys.executable} -c "$CODE" | head -1; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "CODE": code},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.stderr, result.returncode) == ("line\n", "", 141)
