"""The samples page: the right words are marked, nothing is injected, the file stands alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.evaluation.measured import Measured
from cluster.evaluation.samples_page import write_samples
from cluster.evaluation.score_table import metric_rows
from cluster.pages import marked
from common import config
from common.data.images import ImageStore
from common.evaluation import Answers, Comparison, Metric, SuiteAnswers
from common.records import (
    Completion,
    ImageRef,
    Message,
    Part,
    Prompt,
    RolloutGroup,
    Verdict,
)
from common.shapes.marks import marked_caption
from common.shapes.prompts import caption_prompts
from common.shapes.scenes import COLOURS, SHAPES
from reward.shapes_world import ShapesSuite
from reward.suites.scorecard import Scorecard, SuiteCard
from tests.reward.builders import SCENE

SUITE = ShapesSuite(config.ShapesSuite())
WORDS = (*SHAPES, *COLOURS, "There is a", "no", ".", "<b>", "\n", "middle", "rings")


@given(st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))
def test_marking_keeps_the_text(text: str) -> None:
    shown = marked_caption(text, SCENE)
    spans = marked(text, list(shown.marks))
    assert "".join(span.text for span in spans) == text
    assert any(span.kind for span in spans) == bool(shown.marks)


def measured(
    prompts: list[Prompt], comparison: Comparison | None, *texts: str
) -> Measured:
    groups: list[RolloutGroup] = []
    for prompt, text in zip(prompts, texts, strict=True):
        completion = Completion((), text, 0, 0, "stop")
        groups.append(RolloutGroup(prompt.id, prompt, (), 0, (completion,)))
    answers = SuiteAnswers({"captions": tuple(groups)})
    measurement = SUITE.measure(answers, comparison, 20)
    card = SuiteCard(
        metrics=dict(measurement.metrics),
        counts=dict(measurement.counts),
        summary=measurement.summary,
    )
    return Measured(Scorecard(suites={"shapes": card}), Answers({"shapes": answers}))


@pytest.fixture
def page(tmp_path: Path) -> str:
    prompts = caption_prompts("test", 3, 0, ImageStore(tmp_path))
    truth = [prompt.reference or "" for prompt in prompts]
    invented = [text + " There is a ring. There is a circle." for text in truth]
    start = measured(prompts, None, *invented)
    verdicts = {
        prompt.id: Verdict((1.0, -0.25), ("clean", "<i>ring</i>")) for prompt in prompts
    }
    comparison = Comparison(start.answers.suites["shapes"], verdicts)
    final = measured(
        prompts, comparison, truth[0], "<script>alert(1)</script>", truth[2]
    )
    final = replace(final, verdicts={"shapes": verdicts})
    path = tmp_path / "out" / "samples.html"
    write_samples(path, [SUITE], final, start, 24, "Before & after")
    return path.read_text()


def test_the_page_stands_alone_and_escapes_what_a_policy_says(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Before &amp; after" in page
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64,)", page)
    assert page.count("<img ") == 3


def test_worst_first_with_both_captions(page: str) -> None:
    """The second scene, whose final caption misses everything, leads; each scene shows before and after."""
    assert re.findall(r"class=\"id\">(\S+?)<", page)[0] == "shapes/test/00001"
    assert page.count("<h3>before</h3>") == page.count("<h3>after</h3>") == 3
    assert 'class="made-up"' in page
    assert "missed:" in page


def test_the_judge_stands_below_both_answers(page: str) -> None:
    assert page.count("judge: 1 · clean") == 3
    assert page.count("judge: -0.25 · &lt;i&gt;ring&lt;/i&gt;") == 3
    assert page.count('class="question" dir="auto">Describe') == 3


def test_the_page_says_what_it_shows(page: str) -> None:
    assert "3 captions and 0 yes/no questions; 95 % bootstrap intervals over" in page
    assert "CHAIR_i ↓" in page
    assert "not in the picture, or said twice" in page
    assert "The first 3 scenes, not picked; worst first." in page


def test_one_policy_alone_and_a_limit(tmp_path: Path) -> None:
    prompts = caption_prompts("test", 3, 0, ImageStore(tmp_path))
    only = measured(prompts, None, "", "A ring.", "A star.")
    write_samples(tmp_path / "samples.html", [SUITE], only, limit=2)
    page = (tmp_path / "samples.html").read_text()
    assert page.count("<img ") == 2
    assert "<h3>before</h3>" not in page
    assert "(nothing)" in page


def test_a_missing_picture_leaves_its_place_empty(tmp_path: Path) -> None:
    message = Message("user", (Part("image"), Part("text", "Describe the image.")))
    lost = ImageRef("0" * 64, str(tmp_path / "lost.png"))
    prompt = Prompt("p", (message,), (lost,), truth=SCENE.to_dict())
    only = measured([prompt], None, "A ring.")
    write_samples(tmp_path / "samples.html", [SUITE], only)
    page = (tmp_path / "samples.html").read_text()
    assert "<img " not in page
    assert "ring" in page


def test_rows_leave_out_what_nobody_measured() -> None:
    chair_i = Metric(0.25, (0.2, 0.3), "CHAIR_i", "lower", "mentions that are wrong")
    hidden = Metric(0.5)
    card = SuiteCard(metrics={"chair_i": chair_i, "selection": hidden})
    cards = [Scorecard(suites={"shapes": card}), Scorecard()]
    cells = [("0.250", "0.200 – 0.300"), ("–", "")]
    assert metric_rows(cards, "shapes") == [
        ("CHAIR_i", "lower", "mentions that are wrong", cells)
    ]
