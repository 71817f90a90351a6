"""The place to add a judge: a config section with a `kind` in `common/config.py`, a class, and a line here."""

from __future__ import annotations

from common.config import JudgeConfig
from common.protocols import Judge
from reward.rules import RulesJudge


def make_judge(config: JudgeConfig) -> Judge:
    """The judge that a `[reward.judge]` section asks for."""
    match config.kind:
        case "rules":
            return RulesJudge(config)
        case "policy":
            from reward.policy_judge import PolicyJudge

            return PolicyJudge(config)
