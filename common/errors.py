"""Errors whose message is one line for the user: what was expected, what came, what to do."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input or set-up. Entry points print the message alone, without a traceback, and exit with status 2."""


class Refused(UserError):
    """One prompt, image or row that cannot be used, while the rest of the run goes on.

    `reason` is the short key it is counted under, as of `Dropped`: `image_missing`, `prompt_too_long`, `bad_row`, …
    """

    def __init__(self, reason: str, message: str) -> None:
        # Both arguments go to the base class: Ray pickles errors, and unpickling calls the class with its `args`.
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class RunFailed(RuntimeError):
    """A run that ended through no fault of its input, in one line; entry points exit with status 1."""


class Halted(UserError):
    """A run cannot go on for now, such as when a budget is used up. What it has is saved, and a resume goes on."""


def plain_message(error: BaseException) -> str:
    """The message alone, without the remote traceback that Ray puts around an error of another process."""
    original = getattr(error, "cause", None)
    return str(original or error)
