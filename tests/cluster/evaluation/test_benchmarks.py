"""Public benchmarks through the evaluator: asked, measured, counted, and written down for official evaluators."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from cluster.evaluation.measure import Evaluator
from cluster.evaluation.measured import write_answer_files
from cluster.runtime.clients import RolloutClient
from common import config
from common.config import Mixture, RunConfig
from common.config.benchmarks import ChairBenchmark, PopeBenchmark
from common.data.images import ImageStore
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, RolloutGroup
from tests.fakes.runtime import LocalHandle
from tests.reward.benchmarks.published import coco_folder, pope_folder


class YesSayer:
    """Says yes and describes a dog; one question is too long for it."""

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: GenerationRequest) -> RolloutGroup | Dropped:
        if request.prompt.id == "pope/random/2":
            return Dropped(request.id, "prompt_too_long")
        completion = Completion((1,), "Yes, a dog.", 0, 0, "stop")
        return RolloutGroup(request.id, request.prompt, (1,), 0, (completion,))


def test_a_run_writes_what_official_evaluators_read(tmp_path: Path) -> None:
    """random: yes to yes and to no, one lost. popular: yes to two yes. The captions: 1 of 3 pictures has a dog."""
    pope = pope_folder(tmp_path / "pope")
    coco = coco_folder(tmp_path / "coco")
    suites = (
        PopeBenchmark(path=str(pope)),
        ChairBenchmark(path=str(coco), synonyms=str(coco / "synonyms.txt")),
    )
    settings = RunConfig(
        mixture=Mixture(online_fraction=1),
        evaluation=config.Evaluation(
            suites=suites, bootstrap_samples=20, grounding_pairs=0
        ),
    )
    evaluator = Evaluator(settings, ImageStore(tmp_path / "store"))
    rollout = RolloutClient(LocalHandle(YesSayer()), 30.0)
    measured = asyncio.run(evaluator.measure("test", [rollout], [], None, "test"))
    card = measured.card.suites["pope"]
    assert card.value("pope/random/accuracy") == 0.5
    assert card.value("pope/popular/accuracy") == 1
    assert card.dropped == {"prompt_too_long": 1}
    assert measured.card.suites["chair"].dropped == {"no_annotation": 1}
    assert measured.card.suites["chair"].value("chair_s") == 2 / 3
    folder = tmp_path / "answers" / "start"
    write_answer_files(folder, evaluator.suites, measured.answers, "start")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert names == [
        "chair/chair_captions.json",
        "pope/coco_pope_popular.json",
        "pope/coco_pope_popular_answers.jsonl",
        "pope/coco_pope_random.json",
        "pope/coco_pope_random_answers.jsonl",
    ]
    lines = (folder / "pope" / "coco_pope_random_answers.jsonl").read_text()
    answers = [json.loads(line)["answer"] for line in lines.splitlines()]
    assert answers == ["Yes, a dog."] * 2
