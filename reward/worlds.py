"""The judges that the rendered worlds share: a prompt's truth says which world it is of."""

from __future__ import annotations

from common import config
from common.protocols import Eye
from common.records import Completion, Prompt
from common.worlds.answers import WORDS
from reward import shapes_world, tabletop_world
from reward.judges.claims import ClaimLanguage, ClaimsJudge
from reward.judges.rules import Fault, RulesJudge
from reward.judges.splitting import RuleSplitter


def rules_judge(costs: config.RulesJudge) -> RulesJudge:
    """Holds what an answer says against what the scene holds."""

    def faults_of(prompt: Prompt, completion: Completion) -> list[Fault]:
        if tabletop_world.is_tabletop(prompt):
            return tabletop_world.faults_of(prompt, completion, costs)
        return shapes_world.faults_of(prompt, completion, costs)

    return RulesJudge(faults_of)


def policy_judge(eye: Eye) -> ClaimsJudge:
    """Asks a vision-language model about every object that a text claims; colours and places are not checked."""
    language = ClaimLanguage(
        question_of=_question_of,
        yes=WORDS["yes"],
        no=WORDS["no"],
        nothing_claimed="names no object",
    )
    return ClaimsJudge("policy", eye, RuleSplitter(_claims_of), language)


def _claims_of(text: str) -> list[str]:
    # No word names an object in both worlds.
    return shapes_world.claimed_shapes(text) + tabletop_world.claimed_kinds(text)


def _question_of(prompt: Prompt, claim: str) -> str:
    if tabletop_world.is_tabletop(prompt):
        return tabletop_world.question_about(claim)
    return shapes_world.question_about(claim)
