"""Makes the judge that a config names.

A new kind of judge is a section with a `kind` in `common/config/judges.py`, which joins the union `JudgeConfig`, and
a case here.
"""

from __future__ import annotations

from common.config import JudgeConfig
from common.protocols import Judge


def make_judge(config: JudgeConfig) -> Judge:
    """The judge of this kind (UserError when it cannot be loaded)."""
    # A judge's module is imported only when it is asked for: some bring torch along.
    match config.kind:
        case "rules":
            from reward.shapes_world import rules_judge

            return rules_judge(config)
        case "policy":
            from reward.shapes_world import policy_judge

            return policy_judge(config)
