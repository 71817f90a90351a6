"""What can be said about the eyes of a judge before any worker starts."""

from __future__ import annotations

from common.config.eyes import EndpointEye, eyes_of
from common.config.section import Section
from common.loading import check_folder


def check_eyes(judge: Section) -> None:
    """Look whether models are there and servers answer.

    Raises:
        UserError: a folder holds no model, nobody answers at an address, or a server does not know us.
    """
    for eye in eyes_of(judge):
        if isinstance(eye, EndpointEye):
            from common.endpoint.greeting import greet

            greet(eye, "reward.judge")
        else:
            check_folder(eye.path, "reward.judge.path")
