"""The case of issue 14: offline DPO on BDHS pairs of the shapes world unlearns to end, and the run says so.

`recorded/bdhs.jsonl` has the rejected answers that `python -m cluster.generate bdhs` made of the first training scenes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from cluster.harm.alert import Alert
from cluster.harm.watch import HarmWatch
from common.config import RunConfig
from common.data.images import ImageStore, read
from common.records import PreferencePair, Response
from common.shapes.prompts import caption_prompts
from common.worlds.decode import generate
from learner.learner import Learner

pytestmark = pytest.mark.slow

BATCH = 32
STEPS = 20
RECORDED = Path(__file__).parent / "recorded" / "bdhs.jsonl"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pairs(store: ImageStore) -> list[PreferencePair]:
    """All of them: 2.5 epochs in 20 steps."""
    lines = RECORDED.read_text().splitlines()
    prompts = caption_prompts("train", len(lines), 0, store)
    pairs: list[PreferencePair] = []
    for line, prompt in zip(lines, prompts, strict=True):
        row = json.loads(line)
        assert row["id"] == prompt.id
        pair = PreferencePair(
            id=f"bdhs/{prompt.id}",
            prompt=prompt,
            chosen=Response(prompt.reference or ""),
            rejected=Response(row["rejected"]),
            source="bdhs",
        )
        pairs.append(pair)
    return pairs


def trained(
    folder: Path, pairs: Sequence[PreferencePair], loss: dict[str, Any]
) -> tuple[Learner, list[Alert]]:
    """The preset's optimizer on 20 batches, and what the run says of them."""
    config = RunConfig.model_validate(
        {
            "run": {"dir": folder},
            "data": {"offline": {"path": str(folder)}},
            "mixture": {"online_fraction": 0},
            "learner": {
                "engine": "torch",
                "num_steps": STEPS,
                "global_batch": BATCH,
                "micro_batch": 16,
                "grounding_pairs": 0,
                "loss": loss,
                "optimizer": {"lr": 3e-5, "warmup_steps": 10},
            },
        }
    )
    learner = Learner(config)
    learner.start()
    watch = HarmWatch(config)
    alerts: list[Alert] = []
    for step in range(1, STEPS + 1):
        first = BATCH * (step - 1) % len(pairs)
        result, _ = learner.step(step, list(pairs[first : first + BATCH]))
        alerts += watch.step(step, result.metrics)
    return learner, alerts


def mean_words(learner: Learner, store: ImageStore) -> float:
    """Of greedy captions of unseen scenes."""
    prompts = caption_prompts("validation", 40, 0, store)
    pictures = [read(prompt.images[0]) for prompt in prompts]
    questions = [prompt.messages[0].parts[-1].text for prompt in prompts]
    tokenizer = learner.models.collator.encoder.tokenizer
    model = learner.policy.model.eval()
    captions = generate(model, tokenizer, pictures, questions)
    return mean(len(caption.split()) for caption in captions)


def test_plain_dpo_warns_before_step_20_and_an_anchor_turns_it(
    tmp_path: Path, pairs: list[PreferencePair], store: ImageStore
) -> None:
    """The end token is what moves first; answers to unseen scenes are then longer than with an anchor.

    That they get longer than the start policy's is measured over 40 steps, see docs/harm.md.
    """
    plain, alerts = trained(tmp_path / "plain", pairs, {})
    assert [alert.kind for alert in alerts][:1] == ["end_token"]
    assert alerts[0].step < 20
    assert "learner.loss.nll_weight = 1" in alerts[0].text

    anchored, alerts = trained(tmp_path / "anchored", pairs, {"nll_weight": 1})
    assert alerts == []
    assert mean_words(plain, store) > mean_words(anchored, store)
