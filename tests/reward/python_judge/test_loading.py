"""A user's code on its way from the controller to the workers, and what is told before anything starts."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from common.config import PythonJudge
from common.errors import UserError
from reward.judges.factory import check_judge, judge_identity, make_judge
from tests.reward.python_judge.asking import Write, scores

BROKEN = {
    "an import": ("import no_such_module\n", "ModuleNotFoundError: .*, line 1"),
    "syntax": ("x = 1\ndef judge(:\n", "SyntaxError: .*my_judge.py, line 2"),
    "a module's bug": ("x = 1\ny = x / 0\n", "ZeroDivisionError: .*, line 2"),
    "a script": ("import sys\nsys.exit('usage')\n", "SystemExit: usage .*, line 2"),
    "no such name": ("def judgee(prompt): pass\n", "did you mean judgee"),
    "no judge": ("judge = 3\n", r"expected a class with judge\(group\)"),
    "a class of nothing": ("class judge: pass\n", r"a class with judge\(group\)"),
    "other parameters": (
        "def judge(a, b): pass\n",
        r"got \(a, b\); rename its parameters",
    ),
    "by place": (
        "def judge(prompt, completions, /): pass\n",
        "given by name, got prompt",
    ),
    "written in C": ("judge = max\n", "got one written in C"),
}


@pytest.mark.parametrize(("code", "message"), BROKEN.values(), ids=BROKEN)
def test_the_controller_tells_what_is_wrong(
    write: Write, code: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_judge(write(code))
    assert "\n" not in str(error.value)


def test_settings_that_it_does_not_take_are_told(write: Write) -> None:
    code = """
        class Judge:
            def __init__(self, strict): raise AssertionError("not in the controller")
            def judge(self, group): return [1.0, 0.0]
        """
    with pytest.raises(UserError, match=r"settings of \(strict\), got strickt"):
        check_judge(write(code, "Judge", strickt=1))
    # The class is made in the worker alone; there its error is one line, too.
    settings = check_judge(write(code, "Judge", strict=1))
    with pytest.raises(UserError, match=r"AssertionError: not in .*, line 2\)"):
        make_judge(settings)


def test_a_module_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match=r"got no_such_module, which is neither"):
        check_judge(PythonJudge(target="no_such_module:Judge"))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a Python file, got .*No such file"):
        check_judge(PythonJudge(target=f"{tmp_path}/none.py:Judge"))


# From the controller to the workers.


def test_the_text_travels_with_the_config(write: Write) -> None:
    """A worker on another machine has no such file; another one lies there meanwhile."""
    settings = check_judge(write("def judge(prompt, completions): return [1.0, 0.0]\n"))
    assert isinstance(settings, PythonJudge)
    Path(settings.target.rpartition(":")[0]).unlink()
    assert scores(settings) == (1.0, 0.0)
    assert "return" not in settings.model_dump_json()


def test_a_module_of_this_folder_is_a_file(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write("def judge(prompt, completions): return [3.0, 0.0]\n")
    monkeypatch.chdir(tmp_path)
    settings = check_judge(PythonJudge(target="my_judge:judge"))
    assert isinstance(settings, PythonJudge)
    assert settings.code is not None
    monkeypatch.chdir("/")
    assert scores(settings) == (3.0, 0.0)


def test_a_file_may_import_its_neighbours(write: Write, tmp_path: Path) -> None:
    (tmp_path / "my_neighbour.py").write_text("SCORES = [5.0, 4.0]\n")
    settings = write(
        """
        from my_neighbour import SCORES

        def judge(prompt, completions):
            return SCORES
        """
    )
    assert scores(settings) == (5.0, 4.0)
    sys.path.remove(str(tmp_path))


def test_the_line_of_a_bug_in_a_neighbour_is_told(write: Write, tmp_path: Path) -> None:
    """It is the user's line as well, and the import that led there is right."""
    (tmp_path / "broken_neighbour.py").write_text("x = 1\ny = x / 0\n")
    settings = write("import broken_neighbour\ndef judge(prompt, completions): ...")
    with pytest.raises(UserError, match=r"broken_neighbour\.py, line 2\)"):
        check_judge(settings)
    # A library's line is not theirs: the call of it is.
    settings = write("import json\ny = json.loads('{')\n")
    with pytest.raises(UserError, match=r"my_judge\.py, line 2\)"):
        check_judge(settings)


def test_the_source_is_part_of_the_identity(write: Write) -> None:
    code = "def judge(prompt, completions): return [1.0, 0.0]\n"
    first = judge_identity(write(code))
    assert judge_identity(write(code)) == first
    assert judge_identity(write(code, weight=2)) != first
    assert judge_identity(write(code + "# Changed.\n")) != first
    module = PythonJudge(target="tests.reward.judging:FlakyJudge", failures=0)
    source = inspect.getsource(sys.modules["tests.reward.judging"])
    assert judge_identity(module).endswith(source)
