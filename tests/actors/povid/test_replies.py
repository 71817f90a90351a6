"""What is taken from a reply, and what is refused."""

from __future__ import annotations

import pytest

from actors.povid.reply import read_reply
from common.records import Dropped
from tests.actors.povid.injecting import TRUTH, WRONG


@pytest.mark.parametrize(
    "reply",
    [
        WRONG,
        f"<rewritten>\n{WRONG}\n</rewritten>",
        f"The tags are <rewritten>…</rewritten>.\n<rewritten>{WRONG}</rewritten> Done.",
        f"<think>The true answer says brown.</think> {WRONG}",
    ],
)
def test_the_answer_is_found(reply: str) -> None:
    assert read_reply("p", reply, TRUTH, 2.0) == WRONG


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<rewritten> </rewritten>", "rewrite_empty"),
        (
            "I'm sorry, but I can't help with writing false descriptions.",
            "rewrite_refused",
        ),
        (
            "As an AI language model, I do not write false descriptions.",
            "rewrite_refused",
        ),
        (f"<rewritten>{WRONG}", "rewrite_leftover"),
        (f"Here is the rewritten answer: {WRONG}", "rewrite_leftover"),
        (f"{WRONG} <image>", "rewrite_leftover"),
        (f"<|im_end|>{WRONG}", "rewrite_leftover"),
        (f"{TRUTH}<|im_end|>", "rewrite_unchanged"),
        ("<|im_end|>", "rewrite_empty"),
        (f"```\n{WRONG}\n```", "rewrite_leftover"),
        (TRUTH.upper() + "!", "rewrite_unchanged"),
    ],
)
def test_what_is_no_rejected_answer_has_a_reason(reply: str, expected: str) -> None:
    result = read_reply("p", reply, TRUTH, 2.0)
    assert isinstance(result, Dropped)
    assert (result.id, result.reason) == ("p", expected)


@pytest.mark.parametrize(
    ("length", "taken"), [(9, False), (10, True), (160, True), (161, False)]
)
def test_length_limit(length: int, taken: bool) -> None:
    """(n + 40) / (60 + 40) is within ½ and 2 for n from 10 to 160."""
    result = read_reply(
        "p",
        "x" * length,
        TRUTH,
        2.0,
    )
    if taken:
        assert isinstance(result, str)
    else:
        assert isinstance(result, Dropped)
        assert result.reason == "rewrite_length"


def test_an_answer_of_one_word_may_become_another_or_a_short_sentence() -> None:
    """(4 + 40) · 2 - 40 = 48 characters."""
    another = read_reply("p", "No.", "Yes.", 2.0)
    assert another == "No."
    sentence = read_reply("p", "No, the bench is empty.", "Yes.", 2.0)
    assert isinstance(sentence, str)
    # 49 characters.
    too_long = read_reply(
        "p",
        "No, " + "x" * 45,
        "Yes.",
        2.0,
    )
    assert isinstance(too_long, Dropped)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("I cannot tell the breed of the cat.", "I cannot tell the breed."),
        ("Use ```ls -a``` there.", "Use ```ls -l``` there."),
    ],
)
def test_what_the_true_answer_does_itself_is_no_fault(answer: str, truth: str) -> None:
    assert read_reply("p", answer, truth, 2.0) == answer
