"""What a user's function asks for by the names of its parameters, and what it is given of a group.

    ours      (prompt, images, completions, **columns) -> scores       `image` is the first one; `messages` the
                                                                      conversation; columns by their names
    TRL's     (prompts, completions, **kwargs) -> list of scores       every argument a list, one element per
                                                                      completion; conversational or text

Columns are those of the prompt's `truth`, and `reference`, which may also be asked for as `answer` or `chosen`, as
files call it. A parameter without a default that a prompt has no column for makes the group one that cannot be judged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from common.data.images import read
from common.errors import Refused
from common.records import RolloutGroup

Arguments: TypeAlias = dict[str, Any]
Lazy: TypeAlias = Mapping[str, Callable[[RolloutGroup], Any]]
"""Argument name -> how it is made of a group."""
OTHER_NAMES = ("answer", "chosen")
"""What files call a reference (`common.importers.prompts`). A function asks for the column of its file."""


class NotOurs(ValueError):
    """The function has neither signature."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function may be given.

    Attributes:
        standard: arguments that every group has.
        columns: the others, of one group.
        gives_all: to a function that takes any name, the standard arguments too.
    """

    standard: Lazy
    columns: Callable[[RolloutGroup], dict[str, Any]]
    gives_all: bool


def arguments_of(
    function: Callable[..., Any], trl_text: bool
) -> Callable[[RolloutGroup], Arguments]:
    """How the keyword arguments of a function are made of a group.

    Args:
        trl_text: TRL's functions are given texts in place of conversations.

    Returns:
        A function that raises Refused when a column is missing (`no_truth`), or an image cannot be read.

    Raises:
        NotOurs: the function takes no completions by that name, or its parameters have no names for a caller.
    """
    # Name -> whether the function cannot be called without it.
    named: dict[str, bool] = {}
    takes_any = False
    # Settings that a partial has bound stand, whatever a row has under their names.
    bound = getattr(function, "keywords", {})
    for parameter in _parameters_of(function):
        if parameter.kind == parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind != parameter.VAR_POSITIONAL:
            named[parameter.name] = parameter.default is parameter.empty
    signature = _signature_of(named, trl_text)

    def arguments(group: RolloutGroup) -> Arguments:
        columns = signature.columns(group)
        wanted = dict(named)
        if takes_any:
            optional = [*columns, *(signature.standard if signature.gives_all else ())]
            wanted = {**dict.fromkeys(optional, False), **named}
        for name in bound:
            wanted.pop(name, None)
        return _given(wanted, signature.standard, columns, group)

    return arguments


def _parameters_of(function: Callable[..., Any]) -> Collection[inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:
        raise NotOurs(
            "expected a function of (prompt, images, completions, **columns), got one written in C, whose parameters "
            "cannot be read"
        ) from error
    for parameter in parameters:
        if parameter.kind == parameter.POSITIONAL_ONLY:
            raise NotOurs(
                "expected parameters that are given by name, got "
                f"{parameter.name}, which a '/' makes one by place"
            )
    return parameters


def _signature_of(names: Collection[str], trl_text: bool) -> Signature:
    """Ours where the function asks for one prompt or its picture, else TRL's."""
    if "completions" not in names:
        raise NotOurs(
            "expected a function of (prompt, images, completions, **columns), or TRL's (prompts, completions, "
            f"**kwargs), got ({', '.join(names)})"
        )
    has_pictures = "images" in names and "prompts" not in names
    if has_pictures or not {"prompt", "image", "messages"}.isdisjoint(names):
        return Signature(OURS, _columns, gives_all=False)
    return Signature(TRL_TEXT if trl_text else TRL, _trl_columns, gives_all=True)


def _given(
    wanted: Mapping[str, bool],
    standard: Lazy,
    columns: Mapping[str, Any],
    group: RolloutGroup,
) -> Arguments:
    """The wanted arguments; standard ones before columns of the same name."""
    arguments: Arguments = {}
    for name, is_needed in wanted.items():
        if name in standard:
            arguments[name] = standard[name](group)
        elif name in columns:
            arguments[name] = columns[name]
        elif is_needed:
            raise Refused(
                "no_truth",
                f"expected a column {name!r}, which the function asks for, got {', '.join(sorted(columns))}",
            )
    return arguments


def _columns(group: RolloutGroup) -> dict[str, Any]:
    prompt = group.prompt
    columns: dict[str, Any] = {"reference": prompt.reference}
    if prompt.reference is not None:
        for name in OTHER_NAMES:
            columns[name] = prompt.reference
    columns.update(prompt.truth or {})
    return columns


def _trl_columns(group: RolloutGroup) -> dict[str, Any]:
    columns = _columns(group)
    for name, value in columns.items():
        columns[name] = _repeated(value, group)
    return columns


def _repeated(value: Any, group: RolloutGroup) -> list[Any]:
    """A list with the value for every completion."""
    num_completions = len(group.completions)
    return [value] * num_completions


def _text(group: RolloutGroup) -> str:
    """The texts of the conversation, one part a line."""
    texts: list[str] = []
    for message in group.prompt.messages:
        for part in message.parts:
            if part.kind == "text":
                texts.append(part.text)
    return "\n".join(texts)


def _conversation(group: RolloutGroup) -> list[dict[str, Any]]:
    """The messages as chat templates take them; an image part says only that it is one."""
    messages: list[dict[str, Any]] = []
    for message in group.prompt.messages:
        content: list[dict[str, str]] = []
        for part in message.parts:
            entry: dict[str, str] = {"type": part.kind}
            if part.kind == "text":
                entry["text"] = part.text
            content.append(entry)
        messages.append({"role": message.role, "content": content})
    return messages


def _images(group: RolloutGroup) -> list[Any]:
    images = group.prompt.images
    return list(map(read, images))


def _image(group: RolloutGroup) -> Any:
    images = group.prompt.images
    if not images:
        raise Refused(
            "image_count",
            "expected a prompt with an image, got none",
        )
    return read(images[0])


def _completions(group: RolloutGroup) -> list[str]:
    texts: list[str] = []
    for completion in group.completions:
        texts.append(completion.text)
    return texts


def _trl_texts(group: RolloutGroup) -> list[str]:
    text = _text(group)
    return _repeated(text, group)


def _trl_conversations(group: RolloutGroup) -> list[Any]:
    messages = _conversation(group)
    return _repeated(messages, group)


def _trl_images(group: RolloutGroup) -> list[Any]:
    images = _images(group)
    return _repeated(images, group)


def _trl_answers(group: RolloutGroup) -> list[Any]:
    """Completions as conversations of one turn."""
    answers: list[Any] = []
    for text in _completions(group):
        turn = {"role": "assistant", "content": text}
        answers.append([turn])
    return answers


def _token_ids(group: RolloutGroup) -> list[list[int]]:
    token_ids: list[list[int]] = []
    for completion in group.completions:
        token_ids.append(list(completion.token_ids))
    return token_ids


def _nothing(group: RolloutGroup) -> None:
    """The state of TRL's trainer, which there is not."""


def _no_log(group: RolloutGroup) -> Callable[..., None]:
    """TRL's functions may log; here the journal holds every score."""

    def log(*values: Any, **named: Any) -> None:
        return None

    return log


OURS: Lazy = {
    "prompt": _text,
    "messages": _conversation,
    "images": _images,
    "image": _image,
    "completions": _completions,
}
_TRL_BOTH: Lazy = {
    "completion_ids": _token_ids,
    "images": _trl_images,
    "trainer_state": _nothing,
    "log_extra": _no_log,
    "log_metric": _no_log,
}
TRL: Lazy = {
    "prompts": _trl_conversations,
    "completions": _trl_answers,
    **_TRL_BOTH,
}
TRL_TEXT: Lazy = {
    "prompts": _trl_texts,
    "completions": _completions,
    **_TRL_BOTH,
}
