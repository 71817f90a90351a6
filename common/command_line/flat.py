"""A config as dotted keys and texts, as a command line names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flattened(value: Any, key: str = "") -> dict[str, str]:
    """Dotted key -> value as text; the members of a list are counted from 0."""
    members: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        members = list(value.items())
    elif isinstance(value, list | tuple):
        members = list(enumerate(value))
    if not members:
        return {key: _text(value)}
    values: dict[str, str] = {}
    for name, member in members:
        values |= flattened(member, f"{key}.{name}" if key else str(name))
    return values


def _text(value: Any) -> str:
    # A whole number is the same value whether it was written as 1 or as 1.0.
    if isinstance(value, float) and value.is_integer():
        return str(int(value)) if abs(value) < 1e15 else str(value)
    return str(value)
