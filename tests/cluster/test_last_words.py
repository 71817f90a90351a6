"""How a run that fails says so."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cluster.entry import exit_status
from cluster.last_words import ERRORS, last_words
from common.errors import RunFailed, UserError


class RemoteError(Exception):
    """As Ray raises it: a long text, and the error of the other process as its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("Traceback (most recent call last):\n" * 50)
        self.cause = cause


def words_of(run_dir: Path, error: Exception) -> str:
    with pytest.raises(RunFailed) as failure, last_words(run_dir):
        raise error
    return str(failure.value)


def test_a_bug_is_one_line_and_its_traceback_is_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_000008").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_000004").mkdir()
    line = words_of(tmp_path, RemoteError(KeyError("weights\nmore")))
    path = tmp_path / ERRORS
    assert line == (
        f"KeyError: 'weights\\nmore'; the traceback is in {path}; --resume continues from step_000008"
    )
    text = path.read_text()
    assert text.count("Traceback (most recent call last):\n") > 50
    assert "raise error" in text


def test_a_lost_worker_is_told_as_it_is(tmp_path: Path) -> None:
    line = words_of(tmp_path, RunFailed("rollout/0: its process ended (log: a:/b)"))
    assert line.startswith("rollout/0: its process ended (log: a:/b); the traceback is")
    assert line.endswith("there is no checkpoint yet, so --resume begins again")


def test_failures_are_kept_one_below_the_other(tmp_path: Path) -> None:
    for name in ("first", "second"):
        words_of(tmp_path, RuntimeError(name))
    text = (tmp_path / ERRORS).read_text()
    assert text.index("RuntimeError: first") < text.index("RuntimeError: second")


@pytest.mark.parametrize(
    "error",
    [
        UserError("bad input"),
        OSError(errno.ENOSPC, "No space left on device", "/x"),
        KeyboardInterrupt(),
    ],
)
def test_what_has_its_own_line_keeps_it(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), last_words(tmp_path):
        raise error
    assert not (tmp_path / ERRORS).exists()


def test_a_full_disk_does_not_hide_the_first_error(tmp_path: Path) -> None:
    line = words_of(tmp_path / "gone", RuntimeError("the first"))
    assert line.startswith("RuntimeError: the first; ")


def test_a_failed_run_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def call() -> None:
        raise RunFailed("learner/0: it died")

    assert exit_status(call, "interrupted") == 1
    assert capsys.readouterr().err == "error: learner/0: it died\n"
