"""The text of a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from common.records import Message, Prompt


def question_of(prompt: Prompt) -> str:
    """The text of the conversation; speakers are named if it has more than one turn."""
    return conversation_text(prompt.messages)


def conversation_text(messages: Sequence[Message]) -> str:
    """See `question_of`."""
    if len(messages) == 1:
        return _text_of(messages[0])
    turns = []
    for message in messages:
        text = _text_of(message)
        turns.append(f"{message.role}: {text}")
    return "\n".join(turns)


def last_question_of(prompt: Prompt) -> str:
    """The text of the last turn, which is what the answer is to."""
    return _text_of(prompt.messages[-1])


def _text_of(message: Message) -> str:
    texts = [part.text for part in message.parts if part.kind == "text"]
    return "\n".join(texts)
