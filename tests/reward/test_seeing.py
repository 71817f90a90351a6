"""The judge that compares and grades, over an eye that answers by a script."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import config
from common.config.overrides import load_config
from common.errors import UserError
from common.protocols import JudgeError, Reply
from common.records import Dropped, ImageRef, Message, Part, Prompt, Verdict
from reward.judges.prompts import Questions
from tests.reward.builders import group, prompt
from tests.reward.judging import scores_of, verdict_of
from tests.reward.scripted_eye import asking, by_length, seeing, text_of

PICTURE = ImageRef("0" * 64, "/nowhere.png")
ASKED = Prompt(
    "p",
    (Message("user", (Part("image"), Part("text", "What is seen?"))),),
    (PICTURE,),
    reference="A dog.",
    truth={"secret": 1},
)


# Pairwise.


def test_the_better_answer_wins_in_both_orders() -> None:
    judge, eye = seeing(by_length)
    verdict = verdict_of(judge, group(ASKED, "a dog", "dog"))
    # In each order another one stood first.
    assert verdict == Verdict((1.0, 0.0), ("beat 2", "lost to 1"), first_wins=0.5)
    assert eye.texts == ["a dog > dog", "dog > a dog"]


@pytest.mark.parametrize("always", ["Better: A", "B", "Better: tie"])
@pytest.mark.parametrize("mode", ["pairwise", "tournament"])
def test_an_eye_that_only_knows_places_finds_nothing_but_ties(
    always: str, mode: str
) -> None:
    judge, _ = seeing(lambda text: always, mode=mode)
    scores = scores_of(judge, group(ASKED, "one", "two", "three", "four"))
    assert len(set(scores)) == 1


@pytest.mark.parametrize(
    ("always", "first_wins"), [("Better: A", 1.0), ("B", 0.0), ("Better: tie", 0.5)]
)
def test_a_verdict_says_what_the_answers_shown_first_won(
    always: str, first_wins: float
) -> None:
    """The pair of equal texts is never asked about."""
    judge, _ = seeing(lambda text: always)
    verdict = verdict_of(judge, group(ASKED, "one", "two", "one"))
    assert isinstance(verdict, Verdict)
    assert verdict.first_wins == first_wins


def test_where_nothing_was_compared_no_place_has_won() -> None:
    judge, _ = seeing(lambda text: "Better: A")
    verdict = verdict_of(judge, group(ASKED, "dog", "dog"))
    assert verdict == Verdict((0.5, 0.5), ("tied with 2", "tied with 1"))


def test_every_two_of_three_meet() -> None:
    """By length 3 > 2 > 1: the longest wins both, the middle one of two, the shortest none."""
    judge, eye = seeing(by_length)
    assert scores_of(judge, group(ASKED, "aa", "aaa", "a")) == (0.5, 1.0, 0.0)
    assert len(eye.asked) == 6


def test_a_tournament_asks_less() -> None:
    judge, eye = seeing(by_length, mode="tournament")
    texts = ["aaaa", "aa", "a", "aaa", "aaaaaa", "aaaaa"]
    scores = scores_of(judge, group(ASKED, *texts))
    assert scores.index(1.0) == texts.index("aaaaaa")
    assert scores.index(-1.0) == texts.index("a")
    assert len(eye.asked) == 2 * 7 < 2 * 15


def test_equal_texts_tie_without_a_question() -> None:
    judge, eye = seeing(by_length)
    assert scores_of(judge, group(ASKED, "dog", "dog")) == (0.5, 0.5)
    assert not eye.asked


def test_log_probs_give_parts() -> None:
    """A 0.6, B 0.2, tie 0.2 in this order: 0.7 for the first. Swapped A 0.25, B 0.75: 0.75. Mean 0.725."""
    told = {
        "one > two": (math.log(0.6), math.log(0.2), math.log(0.2)),
        "two > one": (math.log(0.25), math.log(0.75), -math.inf),
    }
    judge, eye = seeing(lambda text: Reply(logprobs=told[text]), reading="logprobs")
    verdict = verdict_of(judge, group(ASKED, "one", "two"))
    assert isinstance(verdict, Verdict)
    assert verdict.scores == pytest.approx((0.725, 0.275))
    # 0.7 and 0.25.
    assert verdict.first_wins == pytest.approx(0.475)
    assert {question.options for question in eye.asked} == {("A", "B", "tie")}


def test_log_probs_that_contradict_each_other_tie() -> None:
    logprobs = (math.log(0.9), math.log(0.1), -math.inf)
    judge, _ = seeing(lambda text: Reply(logprobs=logprobs), reading="logprobs")
    assert scores_of(judge, group(ASKED, "one", "two")) == (0.5, 0.5)


def test_a_server_without_log_probs_is_read_by_its_text() -> None:
    judge, _ = seeing(by_length, reading="logprobs")
    assert scores_of(judge, group(ASKED, "longer", "short")) == (1.0, 0.0)


# What cannot be read.


@pytest.mark.parametrize(
    "reply",
    [
        "A and B",
        "neither",
        "The image shows a dog.",
        "Antwort A",
        "",
        "I'm sorry.",
        Reply(logprobs=(-math.inf, -math.inf, -math.inf)),
        Reply(logprobs=(math.nan, 0.0, 0.0)),
    ],
)
def test_a_reply_without_a_verdict_drops_the_group(reply: Any) -> None:
    judge, _ = seeing(lambda text: reply)
    dropped = verdict_of(judge, group(ASKED, "one", "two"))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "unreadable"
    shown = repr(reply) if isinstance(reply, str) else "log-probs"
    assert shown in dropped.detail
    assert "could read 0 of 1" in dropped.detail


def test_one_order_alone_is_no_verdict() -> None:
    judge, _ = seeing(lambda text: "A" if text == "one > two" else "well")
    dropped = verdict_of(judge, group(ASKED, "one", "two"))
    assert isinstance(dropped, Dropped) and "'well'" in dropped.detail


def test_a_long_reply_is_cut_and_stays_on_one_line() -> None:
    judge, _ = seeing(lambda text: "word\n" * 100)
    dropped = verdict_of(judge, group(ASKED, "one", "two"))
    assert isinstance(dropped, Dropped)
    assert len(dropped.detail) < 200 and "\n" not in dropped.detail


@pytest.mark.parametrize(("least", "has_verdict"), [(0.5, True), (0.9, False)])
def test_some_comparisons_may_be_missing(least: float, has_verdict: bool) -> None:
    """Of three comparisons the one of "aa" and "a" cannot be read; each answer still has one that can."""

    def script(text: str) -> str:
        return "hm" if "aaa" not in text else by_length(text)

    judge, _ = seeing(script, min_readable=least)
    verdict = verdict_of(judge, group(ASKED, "aaa", "aa", "a"))
    if has_verdict:
        notes = ("beat 2, beat 3", "lost to 1, unread against 3")
        assert isinstance(verdict, Verdict)
        assert verdict.scores == (1.0, 0.0, 0.0)
        assert verdict.notes[:2] == notes
    else:
        assert isinstance(verdict, Dropped) and "could read 2 of 3" in verdict.detail


def test_a_question_that_cannot_be_asked_says_so() -> None:
    lost = Dropped("x", "image_missing", "no such file /nowhere.png")
    judge, _ = seeing(lambda text: lost)
    dropped = verdict_of(judge, group(ASKED, "one", "two"))
    assert dropped == Dropped(
        "g", "judge_failed", "judge vlm: image_missing: no such file /nowhere.png"
    )


def test_an_eye_that_fails_for_now_fails_one_group() -> None:
    def script(text: str) -> str:
        if "bad" in text:
            raise JudgeError("server busy")
        return by_length(text)

    judge, _ = seeing(script)
    groups = [group(ASKED, "bad", "worse"), group(ASKED, "long", "short")]
    failed, verdict = asyncio.run(judge.judge(groups))
    assert isinstance(failed, JudgeError) and str(failed) == "server busy"
    assert isinstance(verdict, Verdict)


def test_a_single_answer_has_nothing_to_be_compared_with() -> None:
    judge, _ = seeing(by_length)
    dropped = verdict_of(judge, group(ASKED, "alone"))
    assert isinstance(dropped, Dropped) and "two answers" in dropped.detail


# Pointwise.


def test_grades_are_the_scores_and_equal_texts_are_graded_once() -> None:
    judge, eye = seeing(lambda text: f"Fine.\nGrade: {len(text)}", mode="pointwise")
    verdict = verdict_of(judge, group(ASKED, "aaa", "a", "aaa"))
    assert verdict == Verdict(
        (3.0, 1.0, 3.0), ("Fine. Grade: 3", "Fine. Grade: 1", "Fine. Grade: 3")
    )
    assert len(eye.asked) == 2


def test_the_expected_grade() -> None:
    """Grades 1, 2, 3 with 0.2, 0.2, 0.6 of the mass: 0.2 + 0.4 + 1.8 = 2.4."""
    told = tuple(math.log(share / 2) for share in (0.2, 0.2, 0.6))
    judge, eye = seeing(
        lambda text: Reply(logprobs=told),
        mode="pointwise",
        reading="logprobs",
        highest=3,
    )
    assert scores_of(judge, group(ASKED, "a")) == pytest.approx((2.4,))
    assert eye.asked[0].options == ("1", "2", "3")


def test_a_grade_that_cannot_be_read_drops_the_group() -> None:
    judge, _ = seeing(lambda text: "no idea" if text == "b" else "2", mode="pointwise")
    dropped = verdict_of(judge, group(ASKED, "a", "b", "c"))
    assert isinstance(dropped, Dropped) and dropped.reason == "unreadable"
    assert "could read 2 of 3" in dropped.detail and "no idea" in dropped.detail


# What is asked.


@pytest.mark.parametrize("style", ["plain", "critic"])
@pytest.mark.parametrize("reading", ["text", "logprobs"])
def test_our_templates_hold_everything(style: str, reading: str) -> None:
    labels = ("ONE", "TWO", "BOTH")
    settings: Any = {"template": style, "reading": reading, "labels": labels}
    hostile = 'It\'s {{ 7 * 7 }} <b>& "fine"'
    question = Questions(asking(**settings)).compare(ASKED, "id", hostile, "second")
    text = text_of(question)
    for part in ("What is seen?", hostile, "second", "A dog.", *labels):
        assert part in text
    assert ("Better: ONE" in text) == (reading == "text")
    graded = Questions(asking(**settings, mode="pointwise")).grade(ASKED, "id", hostile)
    text = text_of(graded)
    for part in ("What is seen?", hostile, "A dog.", "from 1", "to 5"):
        assert part in text
    without = replace(ASKED, reference=None)
    text = text_of(Questions(asking(**settings)).compare(without, "id", "a", "b"))
    assert "None" not in text and "A dog." not in text


def test_the_images_come_along_and_the_truth_does_not() -> None:
    question = Questions(asking()).compare(ASKED, "id", "a", "b")
    shown = question.prompt
    assert shown.images == (PICTURE,)
    assert [part.kind for part in shown.messages[0].parts] == ["image", "text"]
    assert shown.truth is None and shown.reference is None


def test_a_template_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ question }}|{{ first }}|{{ second }}")
    for template in (str(path), path.read_text()):
        question = Questions(asking(template=template)).compare(ASKED, "id", "a", "b")
        assert text_of(question) == "What is seen?|a|b"


JUDGE = ["--mixture.online_fraction=1", "--reward.judge.kind=vlm"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"reward\.judge\.path: expected a value"),
        (["template={{ first }}"], r"with \{\{ second \}\}, for mode = pairwise"),
        (["template={{ first }}{{ second }}{{ x }}"], "placeholders of .*, got x"),
        (["template={{ first"], "expected a Jinja template, got an error in line 1"),
        (["template=nothing.txt"], "a file that holds one"),
        (["template={{ first }}{{ second }}", "mode=pointwise"], r"\{\{ answer \}\}"),
        (["labels=A,A,tie"], "none begins with another"),
        (["labels=A,B"], "labels"),
        (["lowest=5"], "lowest must be below highest"),
        (["mode=pointwise", "reading=logprobs", "highest=10"], "one digit"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(
    words: list[str], message: str
) -> None:
    judge = [f"--reward.judge.{word}" for word in words]
    if words:
        judge.append("--reward.judge.path=x")
    with pytest.raises(UserError, match=message) as error:
        load_config(None, [*JUDGE, *judge])
    assert "\n" not in str(error.value)


def test_a_template_cannot_reach_into_python() -> None:
    template = "{{ first }}{{ second }}{{ question.__class__.__mro__ }}"
    questions = Questions(asking(template=template))
    with pytest.raises(Exception, match="unsafe"):
        questions.compare(ASKED, "id", "a", "b")


def test_judges_with_equal_eyes_share_their_engines() -> None:
    from common.config.eyes import engine_eyes

    judge = config.VlmJudge(path="x", num_engines=2)
    claims = config.ClaimsJudge(eye=judge.eye)
    assert engine_eyes(judge) == engine_eyes(claims) == (judge.eye,)
    assert engine_eyes(config.RulesJudge()) == ()
    assert prompt().images == ()


def test_a_changed_template_file_changes_the_judges_identity(tmp_path: Path) -> None:
    from reward.judges.factory import judge_identity

    path = tmp_path / "mine.jinja"
    identities: set[str] = set()
    for ending in ("?", "!", "?"):
        path.write_text(f"{{{{ first }}}} {{{{ second }}}}{ending}")
        judge = asking(path=config.SHAPES_POLICY, template=str(path))
        identities.add(judge_identity(judge))
    assert len(identities) == 2
