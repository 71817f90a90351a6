"""Takes answers apart into claims: by a rule, or by the eye that judges them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from common import config
from common.conversation import question_of
from common.protocols import Eye, Question
from common.records import Dropped, Message, Part, Prompt
from common.sentences import split_sentences
from common.templates import compiled, template_text
from reward.judges.faults import Fault, fault_of
from reward.judges.prompts import built_in

_BULLET = re.compile(r"^\s*(?:[-*•–]|\(?[0-9]{1,3}[.)])\s+")


class RuleSplitter:
    """Claims by a rule, such as one per sentence."""

    def __init__(
        self,
        claims_of: Callable[[str], list[str]],
    ) -> None:
        self._claims_of = claims_of

    async def split(
        self,
        prompt: Prompt,
        texts: Sequence[str],
    ) -> list[list[str] | Fault]:
        """The claims of each text."""
        return [self._claims_of(text) for text in texts]


def sentences(text: str) -> list[str]:
    """The sentences of a text as claims."""
    stripped = [sentence.strip() for sentence in split_sentences(text)]
    return [sentence for sentence in stripped if sentence]


class EyeSplitter:
    """Claims as a model lists them, one a line. It does not see the image, only the answer."""

    def __init__(
        self,
        settings: config.ClaimsJudge,
        eye: Eye,
    ) -> None:
        self._eye = eye
        self._settings = settings
        text = built_in("split")
        if settings.split_template != "plain":
            text = template_text(settings.split_template)
        self._template = compiled(text)

    async def split(
        self,
        prompt: Prompt,
        texts: Sequence[str],
    ) -> list[list[str] | Fault]:
        """The claims of each text, or why the model's list cannot be used."""
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        questions: list[Question] = []
        for index, text in enumerate(distinct):
            questions.append(self._question(prompt, index, text))
        replies = await self._eye.ask(questions) if questions else []
        # A blank answer needs no question.
        claims_of: dict[str, list[str] | Fault] = {}
        for text, reply in zip(distinct, replies, strict=True):
            claims_of[text] = fault_of(reply)
            if not isinstance(reply, Dropped) and reply.text.strip():
                claims_of[text] = listed_claims(reply.text)
        return [claims_of.get(text, []) for text in texts]

    def _question(
        self,
        prompt: Prompt,
        index: int,
        text: str,
    ) -> Question:
        settings = self._settings
        request = self._template.render(
            question=question_of(prompt), answer=text, yes=settings.yes, no=settings.no
        )
        message = Message("user", (Part("text", request.strip()),))
        asked = Prompt(f"{prompt.id}/split-{index}", (message,), ())
        return Question(asked, max_tokens=settings.max_tokens)


def listed_claims(text: str) -> list[str]:
    """The lines of a list without their bullets; none for NONE."""
    claims: list[str] = []
    for line in text.splitlines():
        claim = _BULLET.sub("", line).strip()
        if claim:
            claims.append(claim)
    if len(claims) == 1 and claims[0].strip(".").upper() == "NONE":
        return []
    return claims
