"""An eye that answers by a script, and the judges that are made over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from common import config
from common.protocols import Question, Reply
from common.records import Dropped
from reward.judges.seeing import SeeingJudge

Script = Callable[[str], "str | Reply | Dropped"]
"""What is answered to a question's text."""


class ScriptedEye:
    """Answers what `script` says; `asked` holds all questions."""

    name = "scripted"

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Question] = []

    async def ask(self, questions: Sequence[Question]) -> list[Reply | Dropped]:
        replies: list[Reply | Dropped] = []
        for question in questions:
            self.asked.append(question)
            answer = self.script(text_of(question))
            replies.append(Reply(answer) if isinstance(answer, str) else answer)
        return replies

    @property
    def texts(self) -> list[str]:
        return [text_of(question) for question in self.asked]


def text_of(question: Question) -> str:
    """The text of a question's last part."""
    return question.prompt.messages[-1].parts[-1].text


def asking(**settings: Any) -> config.VlmJudge:
    """A `vlm` section whose engines nobody starts."""
    return config.VlmJudge(**{"path": "judge", **settings})


def seeing(script: Script, **settings: Any) -> tuple[SeeingJudge, ScriptedEye]:
    """A judge over a scripted eye; its template is `first > second` or `answer` unless one is given."""
    is_pointwise = settings.get("mode") == "pointwise"
    template = "{{ answer }}" if is_pointwise else "{{ first }} > {{ second }}"
    eye = ScriptedEye(script)
    judge = SeeingJudge("vlm", asking(**{"template": template, **settings}), eye)
    return judge, eye


def by_length(text: str) -> str:
    """Prefers the longer answer, whatever its place."""
    first, second = text.split(" > ")
    if len(first) == len(second):
        return "Better: tie"
    return f"Better: {'A' if len(first) > len(second) else 'B'}"
