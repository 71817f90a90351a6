"""A look at the judge before anything starts."""

from __future__ import annotations

from cluster.runtime.proxies import check_proxies
from common.config import RunConfig
from common.config.eyes import endpoint_eyes
from reward.eyes.checks import check_eyes


def check_judge(config: RunConfig) -> None:
    """Look whether the judge's models are there and its servers answer (UserError that says what to do)."""
    judge = config.reward.judge
    for eye in endpoint_eyes(judge):
        check_proxies(eye.base_url, "reward.judge.base_url")
    check_eyes(judge)
