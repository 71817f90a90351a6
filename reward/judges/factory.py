"""Which judge a `[reward.judge]` section asks for: a config section with a `kind`, a class, and a case here."""

from __future__ import annotations

from common.config import JudgeConfig
from common.protocols import Judge


def make_judge(config: JudgeConfig) -> Judge:
    """The judge of this kind. Its module is imported only when it is asked for."""
    match config.kind:
        case "rules":
            from reward.shapes_world import rules_judge

            return rules_judge(config)
        case "policy":
            from reward.shapes_world import policy_judge

            return policy_judge(config)
