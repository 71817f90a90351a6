"""Makes the judge that a config names.

A new kind of judge is a section with a `kind` in `common/config/judges.py`, which joins the union `JudgeConfig`, and
a case here.
"""

from __future__ import annotations

from pathlib import Path

from common.config import JudgeConfig
from common.fingerprint import model_hash
from common.protocols import Judge


def check_judge(config: JudgeConfig) -> JudgeConfig:
    """The settings as workers need them, after a look at what the user named. For the controller, before Ray starts.

    Raises:
        UserError: the user's code cannot be imported, or is no judge.
    """
    match config.kind:
        case "python":
            from reward.judges.python import checked

            return checked(config)
        case _:
            return config


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
        case "python":
            from reward.judges.python import UserJudge

            return UserJudge(config)
        case "chair":
            from reward.judges.chair import chair_judge

            return chair_judge(config)
        case "clip":
            from reward.judges.clip import ClipJudge

            return ClipJudge(config)
        case "reward_model":
            from reward.judges.reward_model import RewardModelJudge

            return RewardModelJudge(config)


def judge_identity(config: JudgeConfig) -> str:
    """What a judge's verdicts depend on beside the group: its settings, its model's weights, a user's source."""
    parts = [config.model_dump_json()]
    match config.kind:
        case "policy" | "clip" | "reward_model":
            parts.append(model_hash(Path(config.path)))
        case "chair":
            from reward.judges.chair import identity_of_files

            parts.append(identity_of_files(config))
        case "python":
            from reward.judges.user_code import identity_of

            parts.append(identity_of(config))
    return "\n".join(parts)
