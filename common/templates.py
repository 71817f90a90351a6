"""A user's own prompt templates: Jinja in a sandbox, given as a text or as a file that holds one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from common.paths import expand_home

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import SandboxedEnvironment

_SIGNS_OF_A_TEXT = ("{{", "{%", "\n")


def template_text(value: str) -> str:
    """The text itself, or what the file of this name holds (ValueError when there is no such file)."""
    if any(sign in value for sign in _SIGNS_OF_A_TEXT):
        return value
    path = Path(expand_home(value))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected a template, or a file that holds one ({type(error).__name__})"
        ) from error


def check_template(text: str, needed: Collection[str], known: Collection[str]) -> None:
    """Refuse (ValueError) a template that cannot be parsed, or whose placeholders are not those that are filled.

    Args:
        text: of the template.
        needed: placeholders that it must hold.
        known: all that it may hold.
    """
    from jinja2 import TemplateSyntaxError
    from jinja2.meta import find_undeclared_variables

    try:
        names = find_undeclared_variables(_sandbox().parse(text))
    except TemplateSyntaxError as error:
        raise ValueError(
            f"expected a Jinja template, got an error in line {error.lineno}: {error.message}"
        ) from error
    for name in sorted(needed):
        if name not in names:
            raise ValueError(f"expected a template with {{{{ {name} }}}}")
    unknown = sorted(names.difference(known))
    if unknown:
        raise ValueError(
            f"expected placeholders of {', '.join(sorted(known))}, got {', '.join(unknown)}"
        )


def compiled(text: str) -> Template:
    """The template, ready to be rendered; what is filled in stays plain text."""
    return _sandbox().from_string(text)


def _sandbox() -> SandboxedEnvironment:
    # Imported late: a command's --help has no template to render.
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # No escaping: the result is plain text for a model.
    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
