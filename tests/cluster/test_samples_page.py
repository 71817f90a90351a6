"""The samples page: the right words are marked, nothing is injected, the file stands alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.samples_page import Span, mark, metric_rows, write_samples
from common.images import ImageStore
from common.records import Completion, Prompt, RolloutGroup
from common.shapes.claims import compare
from common.shapes.language import parse_caption
from common.shapes.prompts import caption_prompts
from common.shapes.scenes import COLOURS, PLACES, SHAPES
from reward.scorecard import Answers, Scorecard, make_scorecard
from tests.reward.builders import SCENE, TRUE


def marked(text: str) -> list[tuple[str, str]]:
    return [(span.text, span.kind) for span in mark(text, SCENE).spans if span.kind]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TRUE, []),
        ("There is a red ring at the top.", [("red ring at the top", "made-up")]),
        ("I see rings.", [("rings", "made-up")]),
        ("There is a green circle at the top left.", [("green", "wrong")]),
        ("There is a red circle at the Bottom-Left.", [("Bottom-Left", "wrong")]),
        (
            "There is a Green circle in the middle.",
            [("Green", "wrong"), ("middle", "wrong")],
        ),
        ("A star in the middle.", []),
        ("A red circle and a red circle.", [("red circle", "made-up")]),
        ("There is no ring. There is a ring.", [("ring", "made-up")]),
        ("A ring red circle", [("ring", "made-up")]),
    ],
)
def test_wrong_words_are_marked(text: str, expected: list[tuple[str, str]]) -> None:
    """The scene: a red circle at the top left, a blue star at the center."""
    assert marked(text) == expected


def test_missed_objects_are_named() -> None:
    assert mark("There is a red circle.", SCENE).missed == ("blue star (center)",)


def test_without_a_scene_a_caption_stays_plain() -> None:
    assert mark("a red ring", None).spans == (Span("a red ring"),)


WORDS = (
    *SHAPES,
    *COLOURS,
    *PLACES,
    "There is a",
    "no",
    "at the",
    ".",
    "<b>",
    "\n",
    "middle",
    "rings",
)


@given(st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))
def test_marking_keeps_the_text_and_agrees_with_the_comparison(text: str) -> None:
    caption = mark(text, SCENE)
    assert "".join(span.text for span in caption.spans) == text
    comparison = compare(text, SCENE)
    assert len(caption.missed) == len(comparison.missed)
    assert any(span.kind for span in caption.spans) == any(
        claim.kind != "true" for claim in comparison.claims
    )
    assert len(parse_caption(text)) == len(comparison.claims)


def answered(prompts: list[Prompt], *texts: str) -> Answers:
    rows = zip(prompts, texts, strict=True)
    return Answers(
        tuple(
            RolloutGroup(p.id, p, (), 0, (Completion((), t, 0, 0, "stop"),))
            for p, t in rows
        )
    )


@pytest.fixture
def page(tmp_path: Path) -> str:
    prompts = caption_prompts("test", 3, 0, ImageStore(tmp_path))
    truth = [prompt.reference or "" for prompt in prompts]
    start = answered(
        prompts, *(text + " There is a ring. There is a circle." for text in truth)
    )
    final = answered(prompts, truth[0], "<script>alert(1)</script>", truth[2])
    cards = (
        make_scorecard(start, None, 20),
        make_scorecard(final, dict.fromkeys([p.id for p in prompts], 1.0), 20),
    )
    write_samples(
        tmp_path / "out" / "samples.html",
        (cards[1], final),
        (cards[0], start),
        24,
        "Before & after",
    )
    return (tmp_path / "out" / "samples.html").read_text()


def test_the_page_stands_alone_and_escapes_what_a_policy_says(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Before &amp; after" in page
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64,)", page)
    assert page.count("<img ") == 3


def test_worst_first_with_both_captions(page: str) -> None:
    """The second scene, whose final caption misses everything, leads; each scene shows before and after."""
    assert re.findall(r"class=\"id\">(\S+?)<", page)[0] == "shapes/test/00001"
    assert page.count("<h2>before</h2>") == page.count("<h2>after</h2>") == 3
    assert 'class="made-up"' in page
    assert "missed:" in page


def test_one_policy_alone_and_a_limit(tmp_path: Path) -> None:
    prompts = caption_prompts("test", 3, 0, ImageStore(tmp_path))
    only = answered(prompts, "", "A ring.", "A star.")
    write_samples(
        tmp_path / "samples.html", (make_scorecard(only, None, 10), only), limit=2
    )
    page = (tmp_path / "samples.html").read_text()
    assert page.count("<img ") == 2
    assert "<h2>before</h2>" not in page
    assert "(nothing)" in page


def test_rows_leave_out_what_nobody_measured() -> None:
    rows = metric_rows(
        [Scorecard(chair_i=0.25, intervals={"chair_i": (0.2, 0.3)}), Scorecard()]
    )
    assert rows == [
        (
            "CHAIR_i",
            "lower",
            "mentions of things that are not there",
            [("0.250", "0.200 – 0.300"), ("–", "")],
        )
    ]
