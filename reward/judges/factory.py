"""Makes the judge that a config names.

A new kind of judge is a section with a `kind` in `common/config/judges.py`, which joins the union `JudgeConfig`, and
a case here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from common import config
from common.config import JudgeConfig, RunConfig
from common.config.asking import STYLES
from common.config.eyes import EndpointEye, eyes_of
from common.conversation import question_of
from common.fingerprint import model_hash
from common.loading import check_folder
from common.protocols import Eye, Judge
from common.records import Prompt
from common.templates import compiled, template_text
from reward.eyes.factory import EyeTools, make_eye

Config = TypeVar("Config", bound=RunConfig)


def check_judge(settings: JudgeConfig) -> JudgeConfig:
    """The settings as workers need them, after a look at what the user named. For the controller, before Ray starts.

    Raises:
        UserError: the user's code cannot be imported, or is no judge; a model's folder or a file is missing.
    """
    match settings.kind:
        case "clip" | "reward_model":
            check_folder(settings.path, "reward.judge.path")
            return settings
        case "chair":
            from reward.judges.chair import check_files

            check_files(settings)
            return settings
        case "python":
            from reward.judges.python import checked

            return checked(settings)
        case "ensemble":
            members = []
            for member in settings.members:
                judge = check_judge(member.judge)
                members.append(member.model_copy(update={"judge": judge}))
            return settings.model_copy(update={"members": tuple(members)})
        case _:
            return settings


def with_checked_judge(config: Config) -> Config:
    """A run's config with `check_judge` of its judge."""
    judge = check_judge(config.reward.judge)
    reward = config.reward.model_copy(update={"judge": judge})
    return config.model_copy(update={"reward": reward})


def make_judge(settings: JudgeConfig, tools: EyeTools | None = None) -> Judge:
    """The judge of this kind (UserError when it cannot be loaded); `tools` are for judges that see."""
    tools = tools or EyeTools()
    # A judge's module is imported only when it is asked for: some bring torch along.
    match settings.kind:
        case "rules":
            from reward.worlds import rules_judge

            return rules_judge(settings)
        case "policy":
            from reward.worlds import policy_judge

            return policy_judge(make_eye(settings.eye, tools))
        case "python":
            from reward.judges.python import UserJudge

            return UserJudge(settings)
        case "chair":
            from reward.judges.chair import chair_judge

            return chair_judge(settings)
        case "clip":
            from reward.model_judges.clip import ClipJudge

            return ClipJudge(settings)
        case "reward_model":
            from reward.model_judges.reward_model import RewardModelJudge

            return RewardModelJudge(settings)
        case "answer":
            from reward.judges.answer import AnswerJudge

            return AnswerJudge(settings)
        case "ensemble":
            from reward.judges.ensemble import EnsembleJudge

            judges = [make_judge(member.judge, tools) for member in settings.members]
            return EnsembleJudge(settings, judges)
        case "vlm" | "endpoint":
            from reward.judges.seeing import SeeingJudge

            eye = make_eye(settings.eye, tools)
            return SeeingJudge(settings.kind, settings, eye)
        case "claims":
            return _claims_judge(settings, make_eye(settings.eye, tools))


def judge_identity(settings: JudgeConfig) -> str:
    """What a judge's verdicts depend on beside the group: its settings, its models' weights, a user's source."""
    parts = [settings.model_dump_json()]
    for eye in eyes_of(settings):
        # What a server does behind the name of its model nobody can see.
        if not isinstance(eye, EndpointEye):
            parts.append(model_hash(Path(eye.path)))
    for key in ("template", "split_template"):
        # A file may change behind its name.
        template = getattr(settings, key, "plain")
        if template not in STYLES:
            parts.append(template_text(template))
    match settings.kind:
        case "clip" | "reward_model":
            parts.append(model_hash(Path(settings.path)))
        case "chair":
            from reward.judges.chair import identity_of_files

            parts.append(identity_of_files(settings))
        case "python":
            from reward.judges.user_code import identity_of

            parts.append(identity_of(settings))
        case "ensemble":
            for member in settings.members:
                parts.append(judge_identity(member.judge))
    return "\n".join(parts)


def _claims_judge(settings: config.ClaimsJudge, eye: Eye) -> Judge:
    from reward.judges.claims import ClaimLanguage, ClaimsJudge, Splitter
    from reward.judges.prompts import built_in
    from reward.judges.splitting import EyeSplitter, RuleSplitter, sentences

    text = built_in("claim")
    if settings.template != "plain":
        text = template_text(settings.template)
    template = compiled(text)

    def ask_about(prompt: Prompt, claim: str) -> str:
        question = question_of(prompt)
        return template.render(
            claim=claim, question=question, yes=settings.yes, no=settings.no
        )

    splitter: Splitter = RuleSplitter(sentences)
    if settings.split == "eye":
        splitter = EyeSplitter(settings, eye)
    language = ClaimLanguage(
        question_of=ask_about,
        yes=settings.yes,
        no=settings.no,
        nothing_claimed="claims nothing",
        reads_logprobs=settings.reading == "logprobs",
        max_tokens=settings.max_tokens,
    )
    return ClaimsJudge("claims", eye, splitter, language)
