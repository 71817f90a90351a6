"""A model's chat template: how a conversation becomes text, and how an assistant's turn begins and ends in it.

<s>USER: <image>\\nWhat is seen? ASSISTANT:\\n There is a red circle. </s>
|-------- prompt, to be answered ---------| lead |--- answer ---| gap | end
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from common.errors import UserError
from common.records import Message, Part

QUESTION = "What is seen?"
ANSWER = "There is a red circle."
PROBE = Message("user", (Part("image"), Part("text", QUESTION)))
PROBE_ANSWER = Message("assistant", (Part("text", ANSWER),))
RULE = "Answer in a few words."
ANSWERED = (PROBE, PROBE_ANSWER)
NEXT = "Where is it?"
FOLLOWED = (*ANSWERED, Message("user", (Part("text", NEXT),)))
SYSTEM = (Message("system", (Part("text", RULE),)), PROBE)
TURNS = (
    ("assistant", ANSWERED, ANSWER),
    ("user", FOLLOWED, NEXT),
    ("system", SYSTEM, RULE),
)
"""Role of a turn without images, a conversation that has it, and its text."""

Content = Literal["parts", "string"]
"""What a template takes as a message's content: a list of parts, or one text with placeholders for images."""
CONTENT_FORMS: tuple[Content, ...] = get_args(Content)
_PRINTED_LIST = re.compile(r"""['"]type['"]: ?['"](?:text|image)['"]""")


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """What a template puts around an answer.

    Attributes:
        lead: white space between the prompt and the answer.
        gap: text between the answer and the end.
        end: the token that ends the turn, None where the template writes none.
        follows_prompt: whether the turn begins as the generation prompt says.
    """

    lead: str = ""
    gap: str = ""
    end: str | None = None
    follows_prompt: bool = True


class ChatTemplate:
    """Renders conversations with the template of a processor.

    Args:
        where: names the model for messages.
        image_token: the placeholder whose occurrences are counted.
        image_text: what stands for an image in templates that take strings: the placeholder and what belongs to it.

    Attributes:
        content: what the template takes as the content of a message with images.
        string_roles: roles whose messages without images are a text all the same.
        warnings: what a person should know about the template, one line each.

    Raises:
        UserError: the template cannot render a question about an image.
    """

    def __init__(
        self, processor: Any, where: str, image_token: str, image_text: str
    ) -> None:
        self._processor = processor
        self._image_token = image_token
        self._image_text = image_text
        self.warnings: list[str] = []
        self.content: Content = "parts"
        self.string_roles: set[str] = set()
        self.content = self._content_form(where)
        self._find_string_roles()
        self.assistant_turn = self._probed_turn(where)
        self.warnings += self._turn_warnings(where)

    def render(self, messages: Sequence[Message], is_prompt: bool = True) -> str:
        """The conversation as text with one placeholder per image, by default ready to be answered."""
        text = self._processor.apply_chat_template(
            self.conversation(messages),
            tokenize=False,
            add_generation_prompt=is_prompt,
        )
        return str(text)

    def conversation(
        self, messages: Sequence[Message], images: Sequence[Any] = ()
    ) -> list[dict[str, Any]]:
        """The messages in transformers' form, with the images where some are given."""
        waiting = iter(images)
        conversation: list[dict[str, Any]] = []
        for message in messages:
            content: Any
            if not self._takes_parts(message):
                content = self._string(message)
            else:
                content = []
                for part in message.parts:
                    if part.kind == "text":
                        content.append({"type": "text", "text": part.text})
                        continue
                    image = {"image": next(waiting)} if images else {}
                    content.append({"type": "image", **image})
            conversation.append({"role": message.role, "content": content})
        return conversation

    def _takes_parts(self, message: Message) -> bool:
        has_image = any(part.kind == "image" for part in message.parts)
        is_string = message.role in self.string_roles and not has_image
        return self.content == "parts" and not is_string

    def _string(self, message: Message) -> str:
        """Each image on a line of its own in front of what follows it."""
        text = ""
        last = len(message.parts) - 1
        for number, part in enumerate(message.parts):
            if part.kind == "text":
                text += part.text
            else:
                text += self._image_text + ("\n" if number < last else "")
        return text

    def _content_form(self, where: str) -> Content:
        """The first form in which question and image arrive in the text.

        Templates that want another form print Python's form of a list, drop it, or raise an error of any kind.
        """
        problem = ""
        for content in CONTENT_FORMS:
            self.content = content
            trouble = self._trouble_with_question()
            if trouble is None:
                return content
            problem = problem or trouble
        raise UserError(
            f"{where}: expected a chat template that writes a question and one {self._image_token} for its image, got "
            f"{problem}; correct chat_template.jinja, or give another one with model.chat_template"
        )

    def _find_string_roles(self) -> None:
        """Find the roles whose turns arrive as a text alone, in a template that takes parts where there are images."""
        for role, messages, text in TURNS:
            if self._arrives(messages, text):
                continue
            self.string_roles.add(role)
            if not self._arrives(messages, text):
                self.string_roles.remove(role)

    def _trouble_with_question(self) -> str | None:
        """Why a question about an image does not arrive in the text."""
        try:
            text = self.render([PROBE])
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        num_images = text.count(self._image_token)
        if QUESTION in text and num_images == 1 and not _PRINTED_LIST.search(text):
            return None
        return f"{num_images} placeholders {self._image_token} in {_shown(text)}"

    def _arrives(self, messages: Sequence[Message], text: str) -> bool:
        try:
            rendered = self.render(messages)
        except Exception:
            return False
        return text in rendered and not _PRINTED_LIST.search(rendered)

    def _turn_warnings(self, where: str) -> list[str]:
        """Say it when turns around the question do not reach the text. A turn that is refused is its row's drop."""
        warnings = []
        for name, messages, text in (
            ("a system turn", SYSTEM, RULE),
            ("the turns before the last question", FOLLOWED, QUESTION),
        ):
            try:
                rendered = self.render(messages)
            except Exception:
                continue
            if _PRINTED_LIST.search(rendered) or text not in rendered:
                warnings.append(
                    f"{where}: THE CHAT TEMPLATE DOES NOT WRITE {name.upper()}, but {_shown(rendered)}; correct "
                    "chat_template.jinja, or give another one with model.chat_template"
                )
        return warnings

    def _probed_turn(self, where: str) -> AssistantTurn:
        """What stands around an answer in a rendered conversation."""
        prompt = self.render([PROBE])
        try:
            whole = self.render(ANSWERED, is_prompt=False)
        except Exception as error:
            whole = f"{type(error).__name__}: {error}"
        before, answer, behind = whole.rpartition(ANSWER)
        if not answer:
            self.warnings.append(
                f"{where}: the chat template does not write an assistant's turn, but {_shown(whole)}; answers are "
                "ended by the tokenizer's eos_token"
            )
            return AssistantTurn(follows_prompt=False)
        gap, end = self._end(behind)
        lead = before.removeprefix(prompt)
        if before.startswith(prompt) and not lead.strip():
            return AssistantTurn(lead, gap, end)
        if prompt == self.render([PROBE], is_prompt=False):
            problem = (
                "THE CHAT TEMPLATE HAS NO GENERATION PROMPT: with add_generation_prompt it writes the same text as "
                "without, so the policy is asked without being told that its turn begins"
            )
        else:
            problem = "the generation prompt is not how an assistant's turn begins"
        self.warnings.append(
            f"{where}: {problem}: {_shown(prompt[-40:])} for {_shown(before[-40:])}; correct chat_template.jinja, or "
            "give another one with model.chat_template"
        )
        # Words behind an answer may belong to words in front of it, such as quotation marks, and these are not there.
        return AssistantTurn("", "" if gap.strip() else gap, end, follows_prompt=False)

    def _end(self, behind: str) -> tuple[str, str | None]:
        """The first token of its own behind an answer, and the text in front of that token."""
        tokenizer = self._processor.tokenizer
        names = {token.content for token in tokenizer.added_tokens_decoder.values()}
        names |= set(tokenizer.all_special_tokens)
        names -= {"", self._image_token}
        pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        match = re.search(pattern, behind) if pattern else None
        if match is None:
            return "", None
        return behind[: match.start()], match.group()


def template_text(given: str) -> str:
    """The template that `model.chat_template` gives: the text itself, or that of a file.

    Raises:
        UserError: it names a file that is not there, or cannot be read.
    """
    # No path holds Jinja's braces, and no template is without them.
    if "{{" in given or "{%" in given:
        return given
    try:
        text = Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.chat_template: expected a Jinja template or a file that holds one, got {given!r} ({error}); check "
            "the path"
        ) from error
    if "{{" not in text and "{%" not in text:
        raise UserError(
            f"model.chat_template: expected a file with a Jinja template, got {given} without one; check the path"
        )
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
