"""World 2's plug-in of the reward room: the only file here that knows `common.tabletop`.

`TabletopSuite` asks for captions, yes/no in POPE's splits, colours, places and numbers, and for the last answer of a
conversation, all about the same unbiased scenes.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from common.config.povid import ErrorKind
from common.data.images import ImageStore
from common.evaluation import (
    LegendEntry,
    MetricInfo,
    ShownAnswer,
    Split,
)
from common.records import (
    Dropped,
    Prompt,
    RolloutGroup,
)
from common.tabletop.claims import Claim, Part, compare
from common.tabletop.conversations import ask
from common.tabletop.corrupter import corrupt
from common.tabletop.faults import faults_of as faults_of
from common.tabletop.faults import is_right
from common.tabletop.language import parse
from common.tabletop.marks import marked_caption
from common.tabletop.prompts import (
    attribute_prompts,
    caption_prompts,
    pope_prompts,
    turn_prompts,
)
from common.tabletop.truth import is_tabletop as is_tabletop
from common.tabletop.truth import question_of, scene_of
from common.worlds.truth import MissingTruth
from reward.suites.parts import said_column, wrong_column
from reward.suites.world import (
    CAPTIONS,
    METRICS,
    QUESTIONS,
    SEED,
    CountOf,
    Row,
    WorldSuite,
    asked_column,
    caption_row,
    pope_row,
    right_column,
)

ATTRIBUTES, TURNS = "attributes", "turns"
ASKED = ("colour_asked", "place_asked", "number_asked", "turns")
PART_OF: dict[Part, str] = {
    "colour": "attribute",
    "place": "relation",
    "relation": "relation",
    "number": "count",
}


def claimed_kinds(text: str) -> list[str]:
    """The kinds that a text says are there, repeats included."""
    return [mention.kind for mention in parse(text)]


def question_about(kind: str) -> str:
    """The yes/no question about a kind."""
    return ask("yes_no", kind).text


def _right_of(label: str, meaning: str, task: str) -> MetricInfo:
    return MetricInfo(label, "higher", meaning, tasks=(task,))


TABLETOP_METRICS: dict[str, MetricInfo] = {
    **METRICS,
    "colour_asked": _right_of("colour asked", "right colours", ATTRIBUTES),
    "place_asked": _right_of("place asked", "right places", ATTRIBUTES),
    "number_asked": _right_of("number asked", "right numbers", ATTRIBUTES),
    "turns": _right_of("second turns", "right last answers", TURNS),
}
"""Those of all worlds, and what this one asks besides."""


class TabletopSuite(WorldSuite):
    """A `common.protocols.Suite` of tables whose content is known."""

    metrics = TABLETOP_METRICS
    asked = ASKED
    legend = (
        LegendEntry("made-up", "red", "not in the picture, or said twice"),
        LegendEntry("wrong", "orange", "wrong colour, number, place or relation"),
        LegendEntry("note", "grey", "what is true instead"),
    )

    def prompts(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> dict[str, list[Prompt]]:
        """All that is asked about every scene."""
        count = self.num_scenes[split]
        per_split = self.questions_per_scene
        return {
            CAPTIONS: caption_prompts(split, count, SEED, store),
            QUESTIONS: pope_prompts(split, count, SEED, store, per_split),
            ATTRIBUTES: attribute_prompts(split, count, SEED, store),
            TURNS: turn_prompts(split, count, SEED, store),
        }

    def count_of(self, task: str) -> CountOf:
        """See `WorldSuite`."""
        if task == CAPTIONS:
            return _caption_row
        if task == QUESTIONS:
            return _question_row
        return partial(_asked_row, is_turn=task == TURNS)

    def marked(self, prompt: Prompt, text: str) -> ShownAnswer:
        """See `WorldSuite`."""
        return marked_caption(text, scene_of(prompt))

    def corrupted(self, prompt: Prompt, kind: ErrorKind) -> str | Dropped:
        """See `WorldSuite`."""
        return corrupt(prompt, kind, SEED)


def _caption_row(group: RolloutGroup) -> Row:
    """What a caption adds to the counts of its scene (MissingTruth when the scene is not known)."""
    scene = scene_of(group.prompt)
    claims = compare(group.completions[0].text, scene).claims
    named = [claim.mention.kind for claim in claims]
    return caption_row(group, named, scene.kinds, map(_claim_row, claims))


def _claim_row(claim: Claim) -> Counter[str]:
    """What a claim says of a thing that is there, by part, and what of it is wrong."""
    row: Counter[str] = Counter()
    if claim.repeated:
        row[said_column("count")] += 1
        row[wrong_column("count")] += 1
    for part in claim.said:
        row[said_column(PART_OF[part])] += 1
    for part in claim.wrong:
        row[wrong_column(PART_OF[part])] += 1
    return row


def _question_row(group: RolloutGroup) -> dict[str, int]:
    """What an answer adds to the counts of its POPE split (MissingTruth when the answer is not known)."""
    question = question_of(group.prompt)
    if question.split is None:
        raise MissingTruth(f"prompt {group.prompt.id}: expected a POPE split, got none")
    is_there = scene_of(group.prompt).thing(question.kind) is not None
    text = group.completions[0].text
    return pope_row(text, "yes" if is_there else "no", question.split)


def _asked_row(group: RolloutGroup, is_turn: bool) -> dict[str, int]:
    """Whether an answer is right (MissingTruth when that is not known)."""
    question = question_of(group.prompt)
    text = group.completions[0].text
    name = "turns" if is_turn else f"{question.about}_asked"
    right = is_right(text, question, scene_of(group.prompt))
    return {right_column(name): int(right), asked_column(name): 1}
