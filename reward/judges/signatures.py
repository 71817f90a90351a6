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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from common.data.images import read
from common.errors import Refused
from common.records import Prompt, RolloutGroup

Arguments: TypeAlias = dict[str, Any]
Lazy: TypeAlias = Mapping[str, Callable[[RolloutGroup], Any]]
"""Argument name -> how it is made of a group."""


class NotOurs(ValueError):
    """The function has neither signature."""


@dataclass(frozen=True)
class Parameters:
    """The parameters of a function by what they need."""

    function: Callable[..., Any]

    @cached_property
    def _all(self) -> Sequence[inspect.Parameter]:
        return list(inspect.signature(self.function).parameters.values())

    @cached_property
    def named(self) -> dict[str, bool]:
        """Name -> whether the function cannot be called without it."""
        named: dict[str, bool] = {}
        for parameter in self._all:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                named[parameter.name] = parameter.default is parameter.empty
        return named

    @cached_property
    def takes_rest(self) -> bool:
        """Whether it takes any further name."""
        return any(parameter.kind == parameter.VAR_KEYWORD for parameter in self._all)


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
    parameters = Parameters(function)
    names = set(parameters.named)
    if "completions" not in names:
        raise NotOurs(
            "expected a function of (prompt, images, completions, **columns), or TRL's (prompts, completions, "
            f"**kwargs), got ({', '.join(parameters.named)})"
        )
    is_ours = not names.isdisjoint({"prompt", "image", "messages"})
    if is_ours or ("images" in names and "prompts" not in names):
        return lambda group: _chosen(parameters, group, OURS, _columns(group.prompt))
    standard = TRL_TEXT if trl_text else TRL
    return lambda group: _chosen(parameters, group, standard, _trl_columns(group))


def _chosen(
    parameters: Parameters,
    group: RolloutGroup,
    standard: Lazy,
    columns: Mapping[str, Any],
) -> Arguments:
    """Of what there is, what the function has names for."""
    arguments: Arguments = {}
    for name, is_needed in parameters.named.items():
        if name in standard:
            arguments[name] = standard[name](group)
        elif name in columns:
            arguments[name] = columns[name]
        elif is_needed:
            raise Refused(
                "no_truth",
                f"expected a column {name!r}, which the function asks for, got {', '.join(sorted(columns)) or 'none'}",
            )
    if parameters.takes_rest:
        for name, value in columns.items():
            if name not in standard:
                arguments.setdefault(name, value)
        for name, make in standard.items():
            # TRL gives all of them to whoever takes any.
            if standard is not OURS and name not in arguments:
                arguments[name] = make(group)
    return arguments


def _columns(prompt: Prompt) -> dict[str, Any]:
    return {"reference": prompt.reference, **(prompt.truth or {})}


def _trl_columns(group: RolloutGroup) -> dict[str, Any]:
    columns = _columns(group.prompt)
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
