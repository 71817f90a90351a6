"""CHAIR (Rohrbach et al. 2018, arXiv 1809.02156): do captions name what is in the picture?

Files: COCO's `instances_*.json` and `captions_*.json`, and CHAIR's `synonyms.txt`. The pictures are those that the
annotations list, drawn by the hash of their id up to `limit`. Captions go out as `chair_captions.json`, a list of
`{image_id, caption}`.
"""

from __future__ import annotations

from functools import partial
from hashlib import sha256

from common.config.benchmarks import ChairBenchmark
from common.errors import Refused
from common.evaluation import LegendEntry, MetricInfo, ShownAnswer, SuiteAnswers
from common.records import Prompt
from reward.benchmarks.base import CAPTIONS, Benchmark, Figures, Files, json_text
from reward.benchmarks.coco import CocoObjects, read_objects
from reward.benchmarks.loading import Counts, Facts, Item, Published, Row, collect
from reward.benchmarks.objects import ObjectWords, read_synonyms
from reward.suites.bootstrap import Columns
from reward.suites.chair import caption_counts, chair

CHAIR_METRICS = {
    "chair_s": MetricInfo("CHAIR_s", "lower", "captions that make something up"),
    "chair_i": MetricInfo("CHAIR_i", "lower", "mentions of things that are not there"),
    "recall": MetricInfo("recall", "higher", "true objects that are named"),
    "selection": MetricInfo("", "higher", "F1 of naming objects"),
}


class Chair(Benchmark):
    """CHAIR_s, CHAIR_i and recall; a caption's made-up objects are marked."""

    tasks = (CAPTIONS,)
    selecting_metric = "selection"
    metrics = CHAIR_METRICS
    legend = (LegendEntry("made-up", "red", "not in the picture"),)

    def __init__(self, settings: ChairBenchmark) -> None:
        super().__init__(settings)
        self._question = settings.question
        self._words = read_synonyms(settings.synonyms, f"{self.key}: synonyms")

    def load(self) -> Published:
        """A caption of every annotated picture."""
        coco = read_objects(str(self.folder), self._words, self.key)
        # The first ones by hash are a fair sample, the same in every run.
        image_ids = sorted(coco.file_names, key=_hash)
        item_of = partial(self._item, coco)
        return collect(
            [{"id": image_id} for image_id in image_ids], item_of, self.folder, self.key
        )

    def _item(
        self,
        coco: CocoObjects,
        _: int,
        row: Row,
    ) -> Item:
        image_id = row["id"]
        objects = coco.objects.get(image_id)
        if objects is None:
            raise Refused(
                "no_annotation", f"image {image_id}: expected annotations, got none"
            )
        name = coco.file_names[image_id]
        facts = {"image_id": image_id, "image": name, "objects": sorted(objects)}
        group = str(image_id)
        return Item(
            id=group,
            question=self._question,
            image=name,
            group=group,
            facts=facts,
            task=CAPTIONS,
        )

    def count(
        self,
        facts: Facts,
        text: str,
    ) -> Counts:
        """See `Benchmark`."""
        return caption_row(self._words, facts["objects"], text)

    def statistic(self, totals: Columns) -> Figures:
        """See `Benchmark`."""
        return chair(totals)

    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """One file; pictures without a caption are left out."""
        rows = []
        for answer in self.answered(answers):
            if answer.text is not None:
                image_id = answer.item.facts["image_id"]
                rows.append({"image_id": image_id, "caption": answer.text})
        return {"chair_captions.json": json_text(rows)}

    def show(
        self,
        prompt: Prompt,
        text: str,
    ) -> ShownAnswer:
        """The caption with what is not in the picture marked; what it leaves out stands below it."""
        return shown_caption(self._words, prompt, text)


def _hash(image_id: int) -> bytes:
    return sha256(str(image_id).encode()).digest()


def caption_row(
    words: ObjectWords,
    objects: list[str],
    text: str,
) -> Counts:
    """CHAIR's counts of a caption, without its length."""
    counts = caption_counts(words.named(text), objects, 0)
    # The base counts the words of all answers.
    del counts["words"]
    return counts


def shown_caption(
    words: ObjectWords,
    prompt: Prompt,
    text: str,
) -> ShownAnswer:
    """A caption with its made-up objects marked; plain when the prompt does not say what is there."""
    truth = prompt.truth or {}
    if "objects" not in truth:
        return ShownAnswer(text)
    present = set(truth["objects"])
    marks = []
    named: set[str] = set()
    for mention in words.mentions(text):
        named.add(mention.name)
        if mention.name not in present:
            marks.append((mention.begin, mention.end, "made-up"))
    missed = tuple(sorted(present - named))
    return ShownAnswer(
        text, marks, note_label="not named", notes=missed, weight=len(marks)
    )
