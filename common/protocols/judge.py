"""Scores groups of answers, and the eye that it may ask: reward/judges/ and reward/eyes/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.records import Dropped, Prompt, RolloutGroup, Verdict


class Judge(Protocol):
    """Scores the completions of rollout groups. It never makes a verdict up."""

    @property
    def name(self) -> str:
        """What drops and logs call it."""
        ...

    async def judge(
        self,
        groups: Sequence[RolloutGroup],
    ) -> Sequence[Verdict | Dropped | JudgeError]:
        """One verdict per group, in order. A Dropped in its place says why asking about the group again cannot help.

        A JudgeError in its place says that it failed on this group for now; asking again may help.

        Raises:
            JudgeError: the same about all of these groups, or about any of them.
            Halted: it cannot go on at all; the run stops with its state saved.
        """
        ...


class JudgeError(RuntimeError):
    """The judge has no verdict. After the retries the group is dropped and counted."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge asks a vision-language model.

    Attributes:
        prompt: a conversation with its images, as the model is given it. Its id names the question in drops.
        options: answers of which the log-probs are wanted, such as ("yes", "no") or the grades; () asks for a text.
        max_tokens: of a text.
    """

    prompt: Prompt
    options: tuple[str, ...] = ()
    max_tokens: int = 512


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a question: a text, or one log-prob (nats) per option; -inf for an option that is not likely.

    An option's log-prob is that of its beginning, up to the token that tells it from the other options. An eye that
    cannot tell log-probs answers with a text instead, and leaves `logprobs` empty.
    """

    text: str = ""
    logprobs: tuple[float, ...] = ()


class Eye(Protocol):
    """A vision-language model that judges put their questions to: a torch model, vLLM engines, or a server."""

    @property
    def name(self) -> str:
        """What drops and logs call it."""
        ...

    async def ask(self, questions: Sequence[Question]) -> list[Reply | Dropped]:
        """One reply per question, in order. A Dropped says why asking again cannot help.

        Raises:
            JudgeError: it failed for now; asking again may help.
            Halted: no question can be asked any more, such as when a budget is used up.
        """
        ...
