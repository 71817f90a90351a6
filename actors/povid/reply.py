"""The rewritten answer in a language model's reply, or why it cannot serve as a rejected answer."""

from __future__ import annotations

import re

from common.end_marks import without_end_mark
from common.records import Dropped

LENGTH_SLACK = 40
"""Characters added to both lengths before their ratio is taken: a one-word answer may become a short sentence."""
DETAIL_CHARS = 100

_MARKED = re.compile(r"<rewritten>(.*?)</rewritten>", re.IGNORECASE | re.DOTALL)
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.IGNORECASE | re.DOTALL)
_LEFTOVER = re.compile(
    r"</?(?:rewritten|think)>|<\|[^|<>]*\|>|<(?:image|video)>|```"
    r"|\b(?:true|mistaken) answer\b|\brewritten (?:answer|version)\b",
    re.IGNORECASE,
)
# At the start of a reply only: in the middle of an answer these words are content.
_REFUSAL = re.compile(
    r"\A\W*(?:i['’]?m sorry|i am sorry|sorry|i apologi[sz]e|as an ai"
    r"|i (?:can['’]?t|cannot|can not|am unable|won['’]?t|must decline)|i['’]m unable)\b",
    re.IGNORECASE,
)


def read_reply(
    id: str,
    reply: str,
    truth: str,
    max_ratio: float,
) -> str | Dropped:
    """The text between the last pair of markers, or the whole reply if there is none.

    Args:
        id: of the row, for a drop.
        reply: the model's text; thoughts at its start are ignored.
        truth: the true answer. What it contains itself is no fault of the reply.
        max_ratio: greatest ratio of the two lengths, in either direction.

    Returns:
        The answer, or Dropped with one of the reasons `rewrite_empty`, `rewrite_refused` (the model declines),
        `rewrite_leftover` (markers, code fences, special tokens, talk about the task), `rewrite_unchanged` (the true
        answer but for case and punctuation), `rewrite_length` (too long or too short against the true answer).
    """
    without_thoughts = _THOUGHT.sub("", reply)
    marked = _MARKED.findall(without_thoughts)
    # The last pair: a model may quote the instruction first.
    answer = marked[-1] if marked else without_thoughts
    answer = without_end_mark(answer.strip())
    reason = _fault(answer, truth, max_ratio)
    if reason is not None:
        return Dropped(id, reason, repr(answer[:DETAIL_CHARS]))
    return str(answer)


def _fault(
    answer: str,
    truth: str,
    max_ratio: float,
) -> str | None:
    if not answer:
        return "rewrite_empty"
    if _REFUSAL.search(answer) and not _REFUSAL.search(truth):
        return "rewrite_refused"
    # A true answer about code may have fences of its own.
    leftovers = set(_LEFTOVER.findall(answer))
    if leftovers.difference(_LEFTOVER.findall(truth)):
        return "rewrite_leftover"
    if _words(answer) == _words(truth):
        return "rewrite_unchanged"
    length = len(answer) + LENGTH_SLACK
    true_length = len(truth.strip()) + LENGTH_SLACK
    ratio = length / true_length
    if not 1 / max_ratio <= ratio <= max_ratio:
        return "rewrite_length"
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
