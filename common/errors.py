"""Errors whose message is one line for the user: what was expected, what came, what to do."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input or set-up. Entry points print the message alone, without a traceback, and exit with status 2."""


def plain_message(error: BaseException) -> str:
    """The message alone; an error that crossed a process boundary carries its remote traceback around it."""
    return str(getattr(error, "cause", None) or error)
