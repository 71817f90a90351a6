"""A look at the judge before anything starts."""

from __future__ import annotations

from typing import TypeVar

from cluster.runtime.proxies import check_proxies
from common.config import RunConfig
from common.config.eyes import endpoint_eyes
from reward.eyes.checks import check_eyes
from reward.judges.factory import with_checked_judge

Config = TypeVar("Config", bound=RunConfig)


def checked_judge(config: Config) -> Config:
    """The config as workers need it: a user's code is read, models are there, servers answer.

    Raises:
        UserError: something is not, and what to do.
    """
    judge = config.reward.judge
    for eye in endpoint_eyes(judge):
        check_proxies(eye.base_url, "reward.judge.base_url")
    check_eyes(judge)
    return with_checked_judge(config)
