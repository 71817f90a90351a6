"""Makes the judge that a config names.

A new kind of judge is a section with a `kind` in `common/config/judges.py`, which joins the union `JudgeConfig`, and
a case here.
"""

from __future__ import annotations

from common import config
from common.config import JudgeConfig
from common.conversation import question_of
from common.protocols import Eye, Judge
from common.records import Prompt
from common.templates import compiled, template_text
from reward.eyes.factory import EyeTools, make_eye


def make_judge(settings: JudgeConfig, tools: EyeTools | None = None) -> Judge:
    """The judge of this kind (UserError when it cannot be loaded); `tools` are for judges that see."""
    tools = tools or EyeTools()
    # A judge's module is imported only when it is asked for: some bring torch along.
    match settings.kind:
        case "rules":
            from reward.shapes_world import rules_judge

            return rules_judge(settings)
        case "policy":
            from reward.shapes_world import policy_judge

            return policy_judge(make_eye(settings.eye, tools))
        case "vlm" | "endpoint":
            from reward.judges.seeing import SeeingJudge

            eye = make_eye(settings.eye, tools)
            return SeeingJudge(settings.kind, settings, eye)
        case "claims":
            return _claims_judge(settings, make_eye(settings.eye, tools))


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
