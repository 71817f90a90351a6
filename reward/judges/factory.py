"""Makes the judge that a config names.

A new kind of judge is a section with a `kind` in `common/config/judges.py`, which joins the union `JudgeConfig`, and
a case here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from common.config import JudgeConfig, RunConfig
from common.fingerprint import model_hash
from common.protocols import Judge

Config = TypeVar("Config", bound=RunConfig)


def check_judge(config: JudgeConfig) -> JudgeConfig:
    """The settings as workers need them, after a look at what the user named. For the controller, before Ray starts.

    Raises:
        UserError: the user's code cannot be imported, or is no judge.
    """
    match config.kind:
        case "python":
            from reward.judges.python import checked

            return checked(config)
        case "ensemble":
            members = []
            for member in config.members:
                judge = check_judge(member.judge)
                members.append(member.model_copy(update={"judge": judge}))
            return config.model_copy(update={"members": tuple(members)})
        case _:
            return config


def with_checked_judge(config: Config) -> Config:
    """A run's config with `check_judge` of its judge."""
    judge = check_judge(config.reward.judge)
    reward = config.reward.model_copy(update={"judge": judge})
    return config.model_copy(update={"reward": reward})


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
        case "answer":
            from reward.judges.answer import AnswerJudge

            return AnswerJudge(config)
        case "ensemble":
            from reward.judges.ensemble import EnsembleJudge

            judges = [make_judge(member.judge) for member in config.members]
            return EnsembleJudge(config, judges)


def judge_identity(config: JudgeConfig) -> str:
    """What a judge's verdicts depend on beside the group: its settings, its model's weights, a user's source."""
    parts = [config.model_dump_json()]
    match config.kind:
        case "policy":
            parts.append(model_hash(Path(config.path)))
        case "python":
            from reward.judges.user_code import identity_of

            parts.append(identity_of(config))
        case "ensemble":
            for member in config.members:
                parts.append(judge_identity(member.judge))
    return "\n".join(parts)
