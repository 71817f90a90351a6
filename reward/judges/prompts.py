"""What judges that see ask: templates filled in, behind the images of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.config import Asking
from common.config.asking import STYLES
from common.conversation import question_of
from common.protocols import Question
from common.records import Message, Part, Prompt
from common.templates import compiled, template_text

TEMPLATES = Path(__file__).parent / "templates"


def built_in(name: str) -> str:
    """The text of one of our templates."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


class Questions:
    """Puts the questions of `settings`."""

    def __init__(
        self,
        settings: Asking,
    ) -> None:
        self._settings = settings
        if settings.template in STYLES:
            text = built_in(f"{settings.template}_{settings.shape}")
        else:
            text = template_text(settings.template)
        self._template = compiled(text)
        self.options = options_of(settings)

    def compare(
        self,
        prompt: Prompt,
        id: str,
        first: str,
        second: str,
    ) -> Question:
        """Which of two answers is better."""
        first_label, second_label, tie_label = self._settings.labels
        text = self._template.render(
            question=question_of(prompt),
            reference=prompt.reference or "",
            first=first,
            second=second,
            first_label=first_label,
            second_label=second_label,
            tie_label=tie_label,
            form=_form_of_comparison(self._settings),
        )
        return self._question(prompt, id, text)

    def grade(
        self,
        prompt: Prompt,
        id: str,
        answer: str,
    ) -> Question:
        """How good an answer is."""
        text = self._template.render(
            question=question_of(prompt),
            reference=prompt.reference or "",
            answer=answer,
            lowest=self._settings.lowest,
            highest=self._settings.highest,
            form=_form_of_grade(self._settings),
        )
        return self._question(prompt, id, text)

    def _question(
        self,
        prompt: Prompt,
        id: str,
        text: str,
    ) -> Question:
        options = self.options if self._settings.reading == "logprobs" else ()
        shown = about_images(prompt, id, text)
        return Question(shown, options, self._settings.max_tokens)


def options_of(settings: Asking) -> tuple[str, ...]:
    """The words among which a verdict is: labels or grades."""
    if settings.shape == "pairwise":
        return settings.labels
    grades = range(settings.lowest, settings.highest + 1)
    return tuple(str(grade) for grade in grades)


def about_images(
    prompt: Prompt,
    id: str,
    text: str,
) -> Prompt:
    """A question about the images of a prompt. It has neither the prompt's truth nor its reference."""
    images = [Part("image")] * len(prompt.images)
    message = Message("user", (*images, Part("text", text.strip())))
    return Prompt(id, (message,), prompt.images)


def _form_of_comparison(settings: Asking) -> str:
    if settings.reading == "logprobs":
        return f"Reply with nothing but {_listed(settings.labels)}."
    lines = [f'"Better: {label}"' for label in settings.labels]
    return f"Give a short reason. Then end with a line that says {_listed(lines)}."


def _form_of_grade(settings: Asking) -> str:
    scale = (
        f"from {settings.lowest}, the worst grade, to {settings.highest}, the best one"
    )
    if settings.reading == "logprobs":
        return f"Reply with nothing but a whole number {scale}."
    return f'Give a short reason. Then end with a line "Grade: N", N a whole number {scale}.'


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
