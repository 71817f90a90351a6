"""What a user's function asks for by the names of its parameters, and what it is given of a group.

    ours      (prompt, images, completions, **columns) -> scores       `image` is the first one; `messages` the
                                                                      conversation; columns by their names
    TRL's     (prompts, completions, **kwargs) -> list of scores       every argument a list, one element per
                                                                      completion; conversational or text

Columns are those of the prompt's `truth`, and `reference`. A parameter without a default that a prompt has no column
for makes the group one that cannot be judged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from common.data.images import read
from common.errors import Refused
from common.records import Prompt, RolloutGroup

Arguments: TypeAlias = dict[str, Any]
Lazy: TypeAlias = Mapping[str, Callable[[RolloutGroup], Any]]
"""Argument name -> how it is made of a group."""


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
        NotOurs: the function takes no completions by that name.
    """
    # Name -> whether the function cannot be called without it.
    named: dict[str, bool] = {}
    takes_any = False
    # Settings that a partial has bound stand, whatever a row has under their names.
    bound = getattr(function, "keywords", {})
    for parameter in inspect.signature(function).parameters.values():
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
    return {"reference": prompt.reference, **(prompt.truth or {})}


def _trl_columns(group: RolloutGroup) -> dict[str, Any]:
    columns = _columns(group)
    return {name: _repeated(value, group) for name, value in columns.items()}


def _repeated(value: Any, group: RolloutGroup) -> list[Any]:
    return [value] * len(group.completions)


def prompt_text(prompt: Prompt) -> str:
    """The texts of a conversation, one part a line."""
    texts: list[str] = []
    for message in prompt.messages:
        texts += [part.text for part in message.parts if part.kind == "text"]
    return "\n".join(texts)


def conversation(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages as chat templates take them; an image part says only that it is one."""
    messages: list[dict[str, Any]] = []
    for message in prompt.messages:
        content: list[dict[str, str]] = []
        for part in message.parts:
            if part.kind == "text":
                content.append({"type": "text", "text": part.text})
            else:
                content.append({"type": "image"})
        messages.append({"role": message.role, "content": content})
    return messages


def _images(group: RolloutGroup) -> list[Any]:
    return [read(image) for image in group.prompt.images]


def _image(group: RolloutGroup) -> Any:
    if not group.prompt.images:
        raise Refused("image_count", "expected a prompt with an image, got none")
    return read(group.prompt.images[0])


def _texts(group: RolloutGroup) -> list[str]:
    return [completion.text for completion in group.completions]


def _answers(group: RolloutGroup) -> list[Any]:
    """Completions as conversations of one turn."""
    return [[{"role": "assistant", "content": text}] for text in _texts(group)]


def _unheard(*args: Any, **kwargs: Any) -> None:
    """TRL's functions may log; here the journal holds every score."""


OURS: Lazy = {
    "prompt": lambda group: prompt_text(group.prompt),
    "messages": lambda group: conversation(group.prompt),
    "images": _images,
    "image": _image,
    "completions": _texts,
}
_TRL_BOTH: Lazy = {
    "completion_ids": lambda group: [
        list(completion.token_ids) for completion in group.completions
    ],
    "images": lambda group: _repeated(_images(group), group),
    "trainer_state": lambda group: None,
    "log_extra": lambda group: _unheard,
    "log_metric": lambda group: _unheard,
}
TRL: Lazy = {
    "prompts": lambda group: _repeated(conversation(group.prompt), group),
    "completions": _answers,
    **_TRL_BOTH,
}
TRL_TEXT: Lazy = {
    "prompts": lambda group: _repeated(prompt_text(group.prompt), group),
    "completions": _texts,
    **_TRL_BOTH,
}
