"""Object HalBench (RLHF-V, arXiv 2312.00849): 300 descriptions of COCO pictures.

File: `obj_halbench_300_with_image.jsonl`, lines `{image_id, question, image}` with the picture as base64. Answers go
out as `obj_halbench_answer.jsonl`, lines `{question_id, image_id, prompt, text, model_id}`.

The official figures need a language model that lists the objects of an answer. With COCO's annotations and the
benchmark's synonyms the same files give CHAIR by rules, which the official script has as well, without `--use_gpt`.
"""

from __future__ import annotations

from functools import partial

from common.config.benchmarks import ObjectHalBenchmark
from common.errors import Refused, UserError
from common.evaluation import LegendEntry, ShownAnswer, SuiteAnswers
from common.records import Dropped, Prompt
from reward.benchmarks.base import CAPTIONS, Benchmark, Figures, Files, json_lines
from reward.benchmarks.chair import CHAIR_METRICS, caption_row, shown_caption
from reward.benchmarks.coco import CocoObjects, read_objects
from reward.benchmarks.loading import (
    Counts,
    Facts,
    Item,
    Published,
    Row,
    collect,
    columns,
    find_file,
    read_rows,
)
from reward.benchmarks.objects import ObjectWords, read_synonyms
from reward.suites.bootstrap import Columns
from reward.suites.chair import chair


class ObjectHalBench(Benchmark):
    """CHAIR by rules where there are annotations, otherwise the answers alone."""

    tasks = (CAPTIONS,)
    selecting_metric = "selection"
    metrics = CHAIR_METRICS
    legend = (LegendEntry("made-up", "red", "not in the picture"),)

    def __init__(self, settings: ObjectHalBenchmark) -> None:
        super().__init__(settings)
        if (settings.annotations is None) != (settings.synonyms is None):
            raise UserError(
                f"{self.key}: expected annotations and synonyms together, got one of them; give both, or neither"
            )
        self._annotations = settings.annotations
        self._words: ObjectWords | None = None
        if settings.synonyms is not None:
            self._words = read_synonyms(settings.synonyms, f"{self.key}: synonyms")

    def load(self) -> Published:
        """A description per line."""
        names = ("obj_halbench_300_with_image.jsonl", "*obj_halbench*.jsonl")
        file = find_file(self.folder, names, self.key)
        coco = None
        if self._annotations is not None and self._words is not None:
            key = f"{self.key}: annotations"
            coco = read_objects(self._annotations, self._words, key)
        dropped: list[Dropped] = []
        rows = read_rows(file, dropped)
        return collect(rows, partial(_item, coco), file, self.key, dropped)

    def count(
        self,
        facts: Facts,
        text: str,
    ) -> Counts:
        """See `Benchmark`."""
        if self._words is None or "objects" not in facts:
            return {}
        return caption_row(self._words, facts["objects"], text)

    def statistic(self, totals: Columns) -> Figures:
        """See `Benchmark`."""
        return chair(totals) if "captions" in totals else {}

    def answer_files(
        self,
        answers: SuiteAnswers,
        policy: str,
    ) -> Files:
        """One file. Unanswered items are left out; the official script wants all 300."""
        rows = []
        for answer in self.answered(answers):
            if answer.text is None:
                continue
            facts = answer.item.facts
            rows.append(
                {
                    "question_id": facts["question_id"],
                    "image_id": facts["image_id"],
                    "prompt": answer.item.question,
                    "text": answer.text,
                    "model_id": policy,
                }
            )
        return {"obj_halbench_answer.jsonl": json_lines(rows)}

    def show(
        self,
        prompt: Prompt,
        text: str,
    ) -> ShownAnswer:
        """The description, with made-up objects marked where there are annotations."""
        if self._words is None:
            return ShownAnswer(text)
        return shown_caption(self._words, prompt, text)


def _item(
    coco: CocoObjects | None,
    number: int,
    row: Row,
) -> Item:
    image_id, question, image = columns(row, "image_id", "question", "image")
    facts: Facts = {"question_id": number - 1, "image_id": int(image_id)}
    if coco is not None:
        objects = coco.objects.get(int(image_id))
        if objects is None:
            raise Refused(
                "no_annotation", f"image {image_id}: expected annotations, got none"
            )
        facts["objects"] = sorted(objects)
    return Item(
        id=str(number),
        question=str(question),
        image=image,
        group=str(image_id),
        facts=facts,
        task=CAPTIONS,
    )
