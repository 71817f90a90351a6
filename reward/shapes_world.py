"""The shapes world in this room: its judges and its suite. No other file of the room knows rendered scenes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from common import config
from common.shapes.faults import faults_of
from common.shapes.language import parse_caption
from common.shapes.questions import answer_text, ask
from reward.rules import RulesJudge

if TYPE_CHECKING:
    from reward.claims_judge import ClaimsJudge


def rules_judge(costs: config.RulesJudge) -> RulesJudge:
    """Holds what a caption or an answer says against what the scene holds."""
    return RulesJudge(partial(faults_of, costs=costs))


def policy_judge(settings: config.PolicyJudge) -> ClaimsJudge:
    """Asks a vision-language model about every object that a caption claims; colours and places are not checked."""
    # Transformers is loaded for this judge only.
    from reward.claims_judge import ClaimLanguage, ClaimsJudge

    language = ClaimLanguage(
        claims_of=_claimed_shapes,
        question_of=ask,
        yes=answer_text("yes"),
        no=answer_text("no"),
        nothing_claimed="names no object",
    )
    return ClaimsJudge(settings, language)


def _claimed_shapes(text: str) -> list[str]:
    return [mention.shape for mention in parse_caption(text)]
