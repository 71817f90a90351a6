"""Judges that users write: both signatures, settings of their own, and what each is given."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from common.config import PythonJudge, RulesJudge
from common.config.overrides import load_config
from common.data.images import ImageStore
from common.errors import UserError
from common.records import Dropped, ImageRef, Verdict
from common.shapes.prompts import caption_prompts
from reward.judges.factory import check_judge, make_judge
from tests.reward.builders import group, prompt
from tests.reward.python_judge.asking import GROUP, Write, dropped, scores


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


def test_what_it_says_of_places_is_kept(write: Write) -> None:
    settings = write(
        """
        import numpy as np
        from common.records import Verdict

        def judge(prompt, completions):
            return Verdict((1.0, 0.0), first_wins=0.75)

        def array(prompt, completions):
            return Verdict((1.0, 0.0), first_wins=np.float32(0.75))
        """
    )
    for name in ("judge", "array"):
        target = settings.target.replace(":judge", f":{name}")
        judge = make_judge(PythonJudge(target=target))
        (answer,) = asyncio.run(judge.judge([GROUP]))
        assert answer == Verdict((1.0, 0.0), first_wins=0.75)


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
