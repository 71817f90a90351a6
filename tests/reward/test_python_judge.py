"""Judges that users write: both signatures, settings of their own, and everything that can be wrong with one."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from common.config import PythonJudge, RulesJudge, RunConfig
from common.config.overrides import load_config
from common.data.images import ImageStore
from common.errors import UserError
from common.records import Dropped, ImageRef, RolloutGroup, Verdict
from common.shapes.prompts import caption_prompts
from reward.judges.factory import check_judge, judge_identity, make_judge
from reward.worker import RewardWorker
from tests.reward.builders import group, prompt
from tests.reward.judging import scores_of

GROUP = group(replace(prompt({"label": "cat"}, id="p17"), reference="A cat."), "a", "b")

Write = Callable[..., PythonJudge]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a user's file and returns the settings of its `judge`, or of another name."""

    def settings(code: str, name: str = "judge", **keys: Any) -> PythonJudge:
        path = tmp_path / "my_judge.py"
        path.write_text(dedent(code).lstrip())
        return PythonJudge(target=f"{path}:{name}", **keys)

    return settings


def scores(settings: PythonJudge, rolled: RolloutGroup = GROUP) -> tuple[float, ...]:
    return scores_of(make_judge(settings), rolled)


def dropped(
    settings: PythonJudge, rolled: RolloutGroup = GROUP, max_retries: int = 0
) -> Dropped:
    """What the reward worker makes of a group that has no verdict."""
    config = RunConfig(
        mixture={"online_fraction": 1},  # type: ignore[arg-type]
        reward={"max_retries": max_retries},  # type: ignore[arg-type]
    )
    worker = RewardWorker(config, make_judge(settings), backoff_s=0.0)
    (result,) = asyncio.run(worker.judge([rolled]))
    assert isinstance(result, Dropped), result
    assert "\n" not in result.detail
    return result


# The command line.


def test_the_kind_may_name_the_code() -> None:
    words = ["--reward.judge.kind=my_judge.py:Mine", "--reward.judge.strict=true"]
    config = load_config(None, ["--mixture.online_fraction=1", *words])
    judge = config.reward.judge
    assert isinstance(judge, PythonJudge)
    assert (judge.target, judge.settings) == ("my_judge.py:Mine", {"strict": True})
    # A run's config.json says the same, and holds no code.
    assert PythonJudge(**judge.model_dump()) == judge


def test_another_kind_has_no_use_for_its_settings(tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(
        'mixture = { online_fraction = 1 }\n[reward]\njudge = { kind = "python", target = "a:B", strict = true }\n'
    )
    assert load_config(preset).reward.judge == PythonJudge(target="a:B", strict=True)  # type: ignore[call-arg]
    changed = load_config(preset, ["--reward.judge.strict=false"])
    assert changed.reward.judge == PythonJudge(target="a:B", strict=False)  # type: ignore[call-arg]
    rules = load_config(preset, ["--reward.judge.kind=rules"])
    assert rules.reward.judge == RulesJudge()
    other = load_config(preset, ["--reward.judge.kind=c:D", "--reward.judge.x=1"])
    assert other.reward.judge == PythonJudge(target="c:D", x=1)  # type: ignore[call-arg]
    # Named once more, it keeps its settings.
    for kind in ("a:B", "python"):
        same = load_config(preset, [f"--reward.judge.kind={kind}"])
        assert same.reward.judge == PythonJudge(target="a:B", strict=True)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"unknown config key reward\.judge\.x"):
        load_config(preset, ["--reward.judge.kind=rules", "--reward.judge.x=1"])


@pytest.mark.parametrize("target", ["judge.py:", ":Mine", "my judge.py:a-b"])
def test_a_target_without_a_name_is_one_line(target: str) -> None:
    words = [f"--reward.judge.kind={target}", "--mixture.online_fraction=1"]
    with pytest.raises(UserError, match=r"^reward\.judge\.target: expected module:N"):
        load_config(None, words)


# What a judge is given.


def test_a_function_gets_texts_columns_and_its_settings(write: Write) -> None:
    settings = write(
        """
        def judge(prompt, completions, label, reference, weight=1, **columns):
            assert prompt == "Describe the image."
            assert (label, reference) == ("cat", "A cat.")
            assert columns == {"size": 3, "answer": "A cat.", "chosen": "A cat."}
            return [weight * ord(text) for text in completions]
        """,
        weight=2,
    )
    # A column has the name of the setting: the setting stands.
    truth = {"label": "cat", "size": 3, "weight": 9}
    asked = replace(GROUP, prompt=replace(GROUP.prompt, truth=truth))
    assert scores(settings, asked) == (2 * 97, 2 * 98)


@pytest.mark.parametrize("name", ["reference", "answer", "chosen"])
def test_a_reference_has_the_name_of_its_column(write: Write, name: str) -> None:
    """Files call it so, and nobody knows that we call it otherwise."""
    ours = f"def judge(prompt, completions, {name}): return [len({name}), 0]"
    assert scores(write(ours)) == (6, 0)
    trl = f"def judge(completions, **kwargs): return [len(t) for t in kwargs[{name!r}]]"
    assert scores(write(trl)) == (6, 6)
    # A column of that name is no reference: the corners of a box, for example.
    row = replace(GROUP.prompt, truth={name: [1, 2]})
    assert scores(write(ours), replace(GROUP, prompt=row)) == (2, 0)


def test_settings_are_for_all_that_is_called(write: Write) -> None:
    code = """
        from functools import partial

        class Scale:
            def __init__(self, by): self.by = by
            def __call__(self, prompt, completions, by=None): return [by or self.by, 0]

        made = Scale(2)
        part = partial(made, by=3)
        """
    assert scores(write(code, "Scale", by=5)) == (5, 0)
    assert scores(write(code, "made", by=5)) == (5, 0)
    assert scores(write(code, "part")) == (3, 0)
    assert scores(write(code, "part", by=5)) == (5, 0)


def test_an_object_takes_no_settings(write: Write) -> None:
    code = """
        class Judge:
            def judge(self, group): return [1.0, 0.0]

        made = Judge()
        """
    assert scores(write(code, "made")) == (1, 0)
    with pytest.raises(UserError, match=r"expected no settings .*, got strict; name"):
        check_judge(write(code, "made", strict=True))


def test_a_function_gets_pictures(write: Write, tmp_path: Path) -> None:
    """Blank or not, the picture decides."""
    code = """
        def judge(prompt, image, images, completions):
            assert image.mode == "RGB" and images[0].size == image.size
            red = sum(image.getchannel("R").tobytes())
            return [float(red), 0.0]
        """
    settings = write(code)
    first, second = caption_prompts("test", 2, 5, ImageStore(tmp_path / "images"))
    assert scores(settings, group(first, "a", "b")) != scores(
        settings, group(second, "a", "b")
    )
    lost = replace(first, images=(ImageRef("0" * 64, "/nowhere.png"),))
    result = dropped(settings, group(lost, "a", "b"))
    assert result.reason == "judge_failed" and "/nowhere.png" in result.detail
    assert "expected a prompt with an image" in dropped(settings).detail


def test_trl_functions_get_lists(write: Write) -> None:
    settings = write(
        """
        def judge(prompts, completions, label, **kwargs):
            assert prompts[0][0]["role"] == "user"
            assert prompts[0][0]["content"] == [
                {"type": "text", "text": "Describe the image."}
            ]
            assert label == ["cat", "cat"] and kwargs["reference"] == ["A cat."] * 2
            assert kwargs["completion_ids"] == [[97], [98]]
            kwargs["log_metric"]("x", 1.0)
            contents = [completion[0]["content"] for completion in completions]
            return [float(ord(text)) for text in contents]
        """
    )
    assert scores(settings) == (97, 98)


def test_trl_functions_may_get_texts(write: Write) -> None:
    settings = write(
        """
        async def judge(completions, prompts, **kwargs):
            assert prompts == ["Describe the image."] * 2
            return [float(ord(text)) for text in completions]
        """,
        trl_text=True,
    )
    assert scores(settings) == (97, 98)


def test_a_function_of_trl_itself() -> None:
    settings = PythonJudge(target="trl.rewards:think_format_reward")
    rolled = group(prompt(), "<think>Why?</think>So.", "So.")
    assert scores(settings, rolled) == (1.0, 0.0)


def test_a_class_may_say_everything_itself(write: Write) -> None:
    settings = write(
        """
        from common.records import Dropped, Verdict

        class Judge:
            def judge(self, group):
                if group.id == "lost":
                    return Dropped("lost", "off_topic", "not my field")
                return Verdict((1.0, 0.0), ("good", "bad"))
        """,
        "Judge",
    )
    judge = make_judge(settings)
    answers = asyncio.run(judge.judge([GROUP, replace(GROUP, id="lost")]))
    assert list(answers) == [
        Verdict((1.0, 0.0), ("good", "bad")),
        Dropped("lost", "off_topic", "not my field"),
    ]


def test_arrays_and_truth_values_are_scores(write: Write) -> None:
    settings = write(
        """
        import numpy as np, torch

        def judge(prompt, completions):
            return np.array([1, 2], dtype=np.float32)

        def tensor(prompt, completions):
            return torch.tensor([1.0, 2.0])

        def tensors(prompt, completions):
            return [torch.tensor(1.0), np.float32(2)]

        def truths(prompt, completions):
            return [True, False]
        """
    )
    for name in ("judge", "tensor", "tensors"):
        target = settings.target.replace(":judge", f":{name}")
        assert scores(PythonJudge(target=target)) == (1.0, 2.0)
    assert scores(PythonJudge(target=settings.target.replace(":judge", ":truths"))) == (
        1.0,
        0.0,
    )


def test_groups_are_judged_side_by_side(write: Write) -> None:
    """Three calls of a sync judge meet at a barrier: one after the other they would wait for ever."""
    settings = write(
        """
        import threading
        barrier = threading.Barrier(3)

        def judge(prompt, completions):
            barrier.wait(30)
            return [1.0, 0.0]
        """
    )
    groups = [replace(GROUP, id=str(index)) for index in range(3)]
    answers = asyncio.run(make_judge(settings).judge(groups))
    assert list(answers) == [Verdict((1.0, 0.0))] * 3


# What may be wrong with its answers.

BAD_SCORES = {
    "nan": "[float('nan'), 1.0]",
    "too many": "[1.0, 2.0, 3.0]",
    "one number": "1.0",
    "none": "None",
    "a none among them": "[1.0, None]",
    "words": "['good', 'bad']",
    "prose": "'The first one is better.'",
    "nothing": "[]",
    "a dict": "{'a': 1.0, 'b': 2.0}",
    "a bad verdict": "Verdict((1.0,))",
    "a table": "numpy.zeros((3, 40))",
    "an odd number": "[1.0, 1j]",
}


@pytest.mark.parametrize("value", BAD_SCORES.values(), ids=BAD_SCORES)
def test_what_is_no_score_is_dropped(write: Write, value: str) -> None:
    result = dropped(
        write(
            f"""
            import numpy
            from common.records import Verdict

            def judge(prompt, completions):
                return {value}
            """
        )
    )
    assert result.reason == "bad_verdict"
    assert "my_judge.py:judge, prompt p17: expected 2 finite scores, got" in (
        result.detail
    )


def test_a_bug_names_judge_prompt_and_line(write: Write) -> None:
    settings = write(
        """
        def judge(prompt, completions):
            return helper(completions)

        def helper(completions):
            return [{}["label"] for text in completions]
        """
    )
    result = dropped(settings)
    path = settings.target.rpartition(":")[0]
    assert result == Dropped(
        "g",
        "judge_failed",
        f"judge {settings.target}, prompt p17: KeyError: 'label' ({path}, line 5)",
    )


@pytest.mark.parametrize(
    "error", ["SystemExit(3)", "StopIteration()", "Odd()", "Mute()"]
)
def test_nothing_that_it_raises_ends_the_worker(write: Write, error: str) -> None:
    settings = write(
        f"""
        class Odd(Exception):
            def __str__(self):
                return "one\\ntwo"

        class Mute(Exception):
            def __str__(self):
                raise ValueError

        class Judge:
            def judge(self, group):
                raise {error}

        class Later:
            async def judge(self, group):
                raise {error}
        """,
        "Judge",
    )
    assert dropped(settings).reason == "judge_failed"
    later = PythonJudge(target=settings.target.replace(":Judge", ":Later"))
    assert dropped(later).reason == "judge_failed"


def test_a_result_that_breaks_when_it_is_read_is_dropped(write: Write) -> None:
    settings = write(
        """
        class Broken:
            def tolist(self):
                raise RuntimeError("the device is lost")

        def judge(prompt, completions):
            return Broken()
        """
    )
    assert "RuntimeError: the device is lost" in dropped(settings).detail
    huge = write("def judge(prompt, completions): return [10 ** 400, 1]")
    assert "OverflowError" in dropped(huge).detail


def test_a_missing_column_is_told(write: Write) -> None:
    settings = write("def judge(prompt, completions, boxes): return [1.0, 0.0]")
    assert (
        "expected a column 'boxes', which the function asks for, got answer, chosen, label"
        in (dropped(settings).detail)
    )


def test_the_network_is_tried_again(write: Write) -> None:
    settings = write(
        """
        calls = []

        def judge(prompt, completions):
            calls.append(1)
            if len(calls) < 3:
                raise ConnectionResetError("gone")
            return [1.0, 0.0]
        """
    )
    assert "ConnectionResetError: gone" in dropped(settings, max_retries=1).detail
    # The third call is the next one.
    assert scores(settings) == (1.0, 0.0)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_judge_that_hangs_costs_its_group_alone(write: Write, kind: str) -> None:
    settings = write(
        f"""
        import asyncio, time

        class Judge:
            {kind} judge(self, group):
                if group.id == "hangs":
                    {"time.sleep(600)" if kind == "def" else "await asyncio.sleep(600)"}
                return [1.0, 0.0]
        """,
        "Judge",
        timeout_s=0.2,
    )
    hanging = replace(GROUP, id="hangs")
    first, second = asyncio.run(make_judge(settings).judge([hanging, GROUP]))
    assert str(first) == "TimeoutError: no answer within 0.2 s"
    assert second == Verdict((1.0, 0.0))
    assert dropped(settings, hanging).reason == "judge_failed"


def test_one_bad_group_of_a_call_for_many_does_not_take_the_others_along(
    write: Write,
) -> None:
    settings = write(
        """
        class Judge:
            def judge(self, groups):
                return [[{"g": 1.0}[group.id], 0.0] for group in groups]
        """,
        "Judge",
    )
    config = RunConfig(mixture={"online_fraction": 1})  # type: ignore[arg-type]
    worker = RewardWorker(config, make_judge(settings), backoff_s=0.0)
    bad = replace(GROUP, id="bad")
    good, lost = asyncio.run(worker.judge([GROUP, bad]))
    assert good == Verdict((1.0, 0.0))
    assert isinstance(lost, Dropped) and "KeyError: 'bad'" in lost.detail
    short = write(
        "class Judge:\n    def judge(self, groups): return [[1.0, 0.0]]", "Judge"
    )
    two = asyncio.run(
        RewardWorker(config, make_judge(short), backoff_s=0.0).judge([GROUP, bad])
    )
    assert two == [Verdict((1.0, 0.0))] * 2
    none = write("class Judge:\n    def judge(self, groups): return []", "Judge")
    assert "one verdict for each of 1 groups, got []" in dropped(none).detail


# What is told before anything starts.

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
