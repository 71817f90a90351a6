"""How the entry points end: one line on standard error, and a status that a script can tell apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import evaluate, generate, import_data, report, train
from cluster.entry import exit_status
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
