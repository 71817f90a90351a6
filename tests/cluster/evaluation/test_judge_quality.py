"""The judge's test as a command: both orders, grey pictures, reasons, and the page of its errors."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from cluster import evaluate, evaluate_judge
from cluster.evaluation.judge_page import write_judge_page
from cluster.evaluation.judge_quality import JudgedPairs, judge_pairs
from cluster.flags import JUDGE_FLAGS
from common.config.jobs import JudgeJobConfig
from common.config.overrides import describe_keys
from common.data import images
from common.data.datasets import write_pairs
from common.data.images import ImageStore
from common.records import (
    Dropped,
    Message,
    Part,
    PreferencePair,
    Prompt,
    Response,
    RolloutGroup,
    Verdict,
)
from reward.judge_quality import measure_judge


class RedJudge:
    """Prefers the answer that says whether the picture is red; fails on request."""

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        verdicts: list[Verdict | Dropped] = []
        for group in groups:
            if "fail" in group.prompt.id:
                verdicts.append(Dropped(group.id, "judge_failed", "as it was told"))
                continue
            red, _, blue = images.read(group.prompt.images[0]).getpixel((0, 0))
            # A grey picture is not red.
            right = "red" if red > blue else "not red"
            scores = [float(c.text == right) for c in group.completions]
            verdicts.append(Verdict(tuple(scores), ("note", "<b>other</b>")))
        return verdicts


def pairs_of(store: ImageStore, *ids: str) -> list[PreferencePair]:
    pairs: list[PreferencePair] = []
    for index, id in enumerate(ids):
        image = store.add(Image.new("RGB", (8, 8), (200, index, 0)))
        message = Message("user", (Part("image"), Part("text", "What <colour>?")))
        prompt = Prompt(id, (message,), (image,))
        chosen, rejected = Response("red"), Response("not red")
        pairs.append(PreferencePair(id, prompt, chosen, rejected, "labelled"))
    return pairs


def test_both_orders_and_grey_pictures(tmp_path: Path) -> None:
    pairs = pairs_of(ImageStore(tmp_path / "images"), "a", "fail", "c")
    store = ImageStore(tmp_path / "grey")
    judged = asyncio.run(judge_pairs(RedJudge(), pairs, store))
    quality = measure_judge("red", pairs, judged.seen, judged.blind, judged.dropped, 20)
    assert quality.metrics["agreement"] == 1.0
    assert quality.metrics["blind_agreement"] == 0.0
    assert quality.metrics["first_wins"] == 0.5
    # Once with its picture and once with a grey one.
    assert quality.dropped == {"judge_failed": 2}


def test_the_page_shows_the_errors_and_escapes_texts(tmp_path: Path) -> None:
    pairs = pairs_of(ImageStore(tmp_path / "images"), "a", "b")
    wrong = [Verdict((0.0, 1.0), ("n", "<b>")), Verdict((1.0, 0.0), ("n", "m"))]
    from reward.judge_quality import BothOrders

    right = BothOrders(wrong[1], wrong[0])
    judged = JudgedPairs(seen={"a": BothOrders(*wrong), "b": right})
    quality = measure_judge("j", pairs, judged.seen, {}, [], 20)
    write_judge_page(tmp_path / "page.html", quality, pairs, judged, 10)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article>") == 1
    assert "wrong in both orders" in page
    assert "&lt;colour&gt;" in page
    assert "&lt;b&gt;" in page
    assert "data:image/png" in page


def test_every_flag_stands_for_a_key() -> None:
    listed = describe_keys(JudgeJobConfig)
    for flag in JUDGE_FLAGS:
        assert f"--{flag.key} " in listed


def test_a_set_without_pairs_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "empty", [])
    assert evaluate.main(["judge", str(tmp_path / "empty")]) == 2
    assert "expected labelled pairs, got none" in capsys.readouterr().err
    assert evaluate_judge.main([str(tmp_path / "missing")]) == 2
    assert "pairs.parquet: expected a parquet file" in capsys.readouterr().err


@pytest.mark.real
def test_the_rules_agree_with_their_own_labels(tmp_path: Path) -> None:
    """True captions over corrupted ones: the rules are always right, with or without the picture.

    In a process of its own: Ray forks, and a test process that holds models can be too large for it.
    """
    from common import config
    from reward.shapes_world import ShapesSuite

    suite = ShapesSuite(config.ShapesSuite(test_scenes=6))
    prompts = suite.prompts("test", ImageStore(tmp_path / "images"), [])
    write_pairs(tmp_path / "pairs", suite.heldout_pairs(prompts, 6))
    page = tmp_path / "judge.html"
    words = ["judge", str(tmp_path / "pairs"), "--page", str(page)]
    command = [sys.executable, "-m", "cluster.evaluate", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "6 pairs in both orders" in result.stdout
    assert "1.000" in result.stdout
    assert page.exists()
