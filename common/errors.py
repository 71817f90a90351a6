"""Errors whose message is one line for the user: what was expected, what came, what to do."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input or set-up. Entry points print the message alone, without a traceback, and exit with status 2."""
