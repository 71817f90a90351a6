"""What a language model answered: the rewritten answer in it, or why it cannot stand as a rejected one."""

from __future__ import annotations

import re

from common.records import Dropped

LENGTH_SLACK = 40
"""Characters added to both lengths before their ratio is taken: answers of a word may become a short sentence."""

_MARKED = re.compile(r"<rewritten>(.*?)</rewritten>", re.IGNORECASE | re.DOTALL)
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.IGNORECASE | re.DOTALL)
_LEFTOVER = re.compile(
    r"</?(?:rewritten|think)>|<\|[^|<>]*\|>|<(?:image|video)>|```"
    r"|\b(?:true|mistaken) answer\b|\brewritten (?:answer|version)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\A\W*(?:i['’]?m sorry|i am sorry|sorry|i apologi[sz]e|as an ai"
    r"|i (?:can['’]?t|cannot|can not|am unable|won['’]?t|must decline)|i['’]m unable)\b",
    re.IGNORECASE,
)


def read_reply(id: str, reply: str, truth: str, max_ratio: float) -> str | Dropped:
    """The rewritten answer: what stands between the last pair of markers, or the whole reply where there is none.

    Dropped reasons: `rewrite_empty`, `rewrite_refused` (the model declines), `rewrite_leftover` (markers, code fences,
    special tokens, talk about the task), `rewrite_unchanged` (says the same as the true answer but for case and
    punctuation), `rewrite_length` (too long or too short against the true answer).
    """
    reply = _THOUGHT.sub("", reply)
    marked = _MARKED.findall(reply)
    answer = (marked[-1] if marked else reply).strip()
    ratio = (len(answer) + LENGTH_SLACK) / (len(truth.strip()) + LENGTH_SLACK)
    if not answer:
        reason = "rewrite_empty"
    elif _REFUSAL.search(answer) and not _REFUSAL.search(truth):
        reason = "rewrite_refused"
    elif set(_LEFTOVER.findall(answer)) - set(_LEFTOVER.findall(truth)):
        reason = "rewrite_leftover"
    elif _words(answer) == _words(truth):
        reason = "rewrite_unchanged"
    elif not 1 / max_ratio <= ratio <= max_ratio:
        reason = "rewrite_length"
    else:
        return answer
    return Dropped(id, reason, repr(answer[:100]))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
