"""The judge of claims over an eye that answers by a script; over a real model see test_policy_judge.py."""

from __future__ import annotations

from typing import Any

import pytest

from common import config
from common.config.overrides import load_config
from common.errors import UserError
from common.protocols import Reply
from common.records import Dropped, Verdict
from reward.eyes.factory import EyeTools
from reward.judges import factory
from reward.judges.claims import ClaimsJudge
from reward.judges.splitting import listed_claims, sentences
from tests.reward.builders import completion, group, prompt
from tests.reward.judging import verdict_of
from tests.reward.scripted_eye import Script, ScriptedEye

EYE = config.EngineEye(path="judge")


def judge_of(
    monkeypatch: pytest.MonkeyPatch, script: Script, **settings: Any
) -> tuple[ClaimsJudge, ScriptedEye]:
    """A judge as the factory makes it, over a scripted eye that gets the claim alone as its question."""
    eye = ScriptedEye(script)
    monkeypatch.setattr(factory, "make_eye", lambda *_: eye)
    values = {"template": "{{ claim }}", "reading": "text", **settings}
    judge = factory.make_judge(config.ClaimsJudge(eye=EYE, **values), EyeTools())
    assert isinstance(judge, ClaimsJudge)
    return judge, eye


def no_cats(text: str) -> str:
    return "No." if "cat" in text else "Yes, it is."


def test_minus_the_denials(monkeypatch: pytest.MonkeyPatch) -> None:
    """One denial; none; a repeat of a claim that is confirmed costs one; so does a text without a claim."""
    judge, eye = judge_of(monkeypatch, no_cats)
    answers = ("A dog. A cat.", "A dog.", "A dog. A dog.", " ")
    verdict = verdict_of(judge, group(prompt(), *answers))
    assert verdict == Verdict(
        (-1.0, 0.0, -1.0, -1.0),
        ("denied A cat.", "no doubt", "repeated A dog.", "claims nothing"),
    )
    # No claim is asked about twice.
    assert eye.texts == ["A cat.", "A dog."]


def test_the_likelier_of_yes_and_no_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(text: str) -> Reply:
        return Reply(logprobs=(-2.0, -1.0) if "cat" in text else (-3.0, -4.0))

    judge, eye = judge_of(monkeypatch, script, reading="logprobs", yes="Ja", no="Nein")
    verdict = verdict_of(judge, group(prompt(), "A cat. A cow.", "A dog."))
    assert isinstance(verdict, Verdict) and verdict.scores == (-1.0, 0.0)
    assert {question.options for question in eye.asked} == {("Ja", "Nein")}


@pytest.mark.parametrize(
    "reply",
    [
        "Both.",
        "",
        "Oui",
        "I'm sorry.",
        Reply(logprobs=(float("-inf"), float("-inf"))),
        Reply(logprobs=(float("nan"), -1.0)),
    ],
)
def test_a_claim_without_an_answer_drops_the_group(
    monkeypatch: pytest.MonkeyPatch, reply: Any
) -> None:
    judge, _ = judge_of(monkeypatch, lambda text: reply if "cat" in text else "Yes")
    dropped = verdict_of(judge, group(prompt(), "A dog.", "A cat."))
    assert isinstance(dropped, Dropped) and dropped.reason == "unreadable"
    assert "could read 1 of 2" in dropped.detail


def test_the_eye_lists_the_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(text: str) -> str:
        if text.startswith("split:"):
            return "- a dog\n2. a cat\n" if "dog" in text else "None."
        return no_cats(text)

    judge, eye = judge_of(
        monkeypatch, script, split="eye", split_template="split: {{ answer }}"
    )
    verdict = verdict_of(judge, group(prompt(), "A dog and a cat", "Hello!"))
    assert verdict == Verdict((-1.0, -1.0), ("denied a cat", "claims nothing"))
    # The one who splits needs no picture, and must not be led by it.
    assert eye.asked[0].prompt.images == ()


def test_a_list_that_never_came_drops_the_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge, _ = judge_of(monkeypatch, lambda text: " ", split="eye")
    dropped = verdict_of(judge, group(prompt(), "A dog.", "A cat."))
    assert isinstance(dropped, Dropped) and dropped.reason == "unreadable"


def test_cut_off_costs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    judge, _ = judge_of(monkeypatch, no_cats)
    rolled = group(prompt(), "A dog.")
    cut = replace(rolled, completions=(completion("A dog.", finish="length"),))
    verdict = verdict_of(judge, cut)
    assert verdict == Verdict((-1.0,), ("cut off",))


def test_our_templates_hold_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, eye = judge_of(monkeypatch, no_cats, template="plain", yes="Ja", no="Nein")
    verdict_of(judge, group(prompt(), "A {{ dog }}."))
    (text,) = eye.texts
    assert "A {{ dog }}." in text and "Ja or Nein" in text


def test_sentences_and_lists() -> None:
    assert sentences(" A dog.  It sits!\nBy Dr. Who? ") == [
        "A dog.",
        "It sits!",
        "By Dr. Who?",
    ]
    assert sentences(" \n") == []
    assert listed_claims("1) one\n* two\n\n10. three\n3 dogs") == [
        "one",
        "two",
        "three",
        "3 dogs",
    ]
    assert listed_claims("NONE") == []


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ('{ kind = "claims" }', r"reward\.judge\.eye: expected"),
        (
            '{ kind = "claims", eye = { path = "x" }, template = "{{ x }}" }',
            r"template: expected a template with \{\{ claim \}\}",
        ),
        (
            '{ kind = "claims", eye = { path = "x" }, yes = "No" }',
            "none begins with another",
        ),
    ],
)
def test_settings_that_cannot_work(judge: str, message: str) -> None:
    words = ["--mixture.online_fraction=1", f"--reward.judge={judge}"]
    with pytest.raises(UserError, match=message):
        load_config(None, words)
