"""The shapes world's plug-in of the reward room: the only file here that knows `common.shapes`.

`ShapesSuite` asks for captions, measured by CHAIR and by the judge against the start policy, and POPE's yes/no
questions about the same scenes.
"""

from __future__ import annotations

from common.config.povid import ErrorKind
from common.data.images import ImageStore
from common.evaluation import LegendEntry, ShownAnswer, Split
from common.records import (
    Dropped,
    Prompt,
    RolloutGroup,
)
from common.shapes.claims import Claim, compare_mentions
from common.shapes.corrupter import corrupt
from common.shapes.faults import faults_of as faults_of
from common.shapes.language import parse_caption
from common.shapes.marks import marked_caption
from common.shapes.prompts import caption_prompts, question_prompts
from common.shapes.questions import ask
from common.shapes.truth import answer_of, scene_of
from reward.suites.parts import said_column, wrong_column
from reward.suites.world import (
    CAPTIONS,
    QUESTIONS,
    SEED,
    CountOf,
    Row,
    WorldSuite,
    caption_row,
    pope_row,
)


def claimed_shapes(text: str) -> list[str]:
    """The shapes that a text says are there, repeats included."""
    return [mention.shape for mention in parse_caption(text)]


def question_about(shape: str) -> str:
    """The yes/no question about a shape."""
    return ask(shape)


class ShapesSuite(WorldSuite):
    """A `common.protocols.Suite` of rendered scenes whose content is known."""

    legend = (
        LegendEntry("made-up", "red", "not in the picture, or said twice"),
        LegendEntry("wrong", "orange", "wrong colour or place"),
        LegendEntry("note", "grey", "never mentioned"),
    )

    def prompts(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> dict[str, list[Prompt]]:
        """A caption of every scene, and questions about the same scenes."""
        num_scenes = self.num_scenes[split]
        questions = question_prompts(
            split,
            num_scenes,
            SEED,
            store,
            self.questions_per_scene,
        )
        captions = caption_prompts(split, num_scenes, SEED, store)
        return {CAPTIONS: captions, QUESTIONS: questions}

    def count_of(self, task: str) -> CountOf:
        """See `WorldSuite`."""
        return _caption_row if task == CAPTIONS else _question_row

    def marked(self, prompt: Prompt, text: str) -> ShownAnswer:
        """See `WorldSuite`."""
        return marked_caption(text, scene_of(prompt))

    def corrupted(self, prompt: Prompt, kind: ErrorKind) -> str | Dropped:
        """See `WorldSuite`."""
        return corrupt(prompt, kind, SEED)


def _caption_row(group: RolloutGroup) -> Row:
    """What a caption adds to the counts of its scene (MissingTruth when the scene is not known)."""
    scene = scene_of(group.prompt)
    mentions = parse_caption(group.completions[0].text)
    # CHAIR is about existence alone: colours and places are left out.
    named = [mention.shape for mention in mentions]
    claims = compare_mentions(mentions, scene).claims
    return caption_row(group, named, scene.shapes, map(_claim_row, claims))


def _claim_row(claim: Claim) -> dict[str, int]:
    """What a claim says of a shape that is there, and what of it is wrong. This world's captions name no numbers."""
    if claim.kind == "hallucinated":
        return {}
    is_repeated = claim.kind == "repeated"
    row = {said_column("count"): 1, wrong_column("count"): int(is_repeated)}
    if is_repeated:
        return row
    if claim.mention.colour is not None:
        row[said_column("attribute")] = 1
        row[wrong_column("attribute")] = int("colour" in claim.wrong)
    if claim.mention.place is not None:
        row[said_column("relation")] = 1
        row[wrong_column("relation")] = int("place" in claim.wrong)
    return row


def _question_row(group: RolloutGroup) -> dict[str, int]:
    """What an answer adds to the counts of its scene and POPE split (MissingTruth when the answer is not known)."""
    true_answer, split = answer_of(group.prompt)
    return pope_row(group.completions[0].text, true_answer, split)
