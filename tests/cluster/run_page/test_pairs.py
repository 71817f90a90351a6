"""Filters and the search, against a plain loop over the same pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.run_page.pairs import PAGE, SHOWN_CHARACTERS, Filter
from cluster.run_page.run import RunPage
from common.errors import UserError
from tests.cluster.run_page.written_runs import HOSTILE, write_run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPage]:
    run_dir = write_run(tmp_path_factory.mktemp("runs") / "run", num_pairs=60)
    with RunPage(run_dir) as run:
        run.store.read_all()
        yield run


def ids(page: RunPage, **words: Any) -> list[str]:
    """All pages of a filter."""
    shown: list[str] = []
    number = 0
    while True:
        asked = {name: str(value) for name, value in words.items()}
        found_page = page.view("pairs", {**asked, "page": str(number)})
        shown += [item["id"] for item in found_page["items"]]
        number += 1
        if number == found_page["num_pages"]:
            assert len(shown) == found_page["total"]
            return shown


def pair(number: int) -> str:
    return f"0:prompt/{number}"


@given(
    first=st.integers(0, 17),
    last=st.integers(0, 17),
    low=st.integers(-1, 70),
    source=st.sampled_from(("", "online", "rloo")),
)
def test_filters_are_those_of_a_plain_loop(
    page: RunPage, first: int, last: int, low: int, source: str
) -> None:
    """Pair n is trained in step n // 4 + 1 with margin 1 + n / 10, from `online` where n is odd."""
    expected: list[str] = []
    for number in reversed(range(60)):
        is_of_source = source in ("", "online" if number % 2 else "rloo")
        is_of_steps = first <= number // 4 + 1 <= last
        if is_of_source and is_of_steps and 1 + number / 10 >= low / 10:
            expected.append(pair(number))
    shown = ids(
        page, source=source, step_from=first, step_to=last, margin_from=low / 10
    )
    assert shown == expected


def test_orders(page: RunPage) -> None:
    assert ids(page, order="oldest") == [pair(number) for number in range(60)]
    assert ids(page, order="margin_high")[:2] == [pair(59), pair(58)]
    assert ids(page, order="margin_low")[:2] == [pair(0), pair(1)]


def test_drops_are_shown_by_reason(page: RunPage) -> None:
    dropped = ids(page, what="dropped:tie")
    assert dropped == ids(page, what="dropped")
    assert dropped[-1] == "1:3" and len(dropped) == 15
    (item, *_) = page.view("pairs", {"what": "dropped:tie"})["items"]
    assert item["detail"] == "scores 1 to 1"
    assert item["answers"] == [
        {
            "text": "the same",
            "left_out": 0,
            "score": 1.0,
            "note": "note 59",
            "count": 2,
        }
    ]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("RED DOG 17", [17]),
        ("note 31", [31]),
        ("prompt/42", [42]),
        ('blue" or cat', []),
        ("blue * 1", []),
        ("%%%", []),
    ],
)
def test_the_search_takes_text_as_it_is(
    page: RunPage, text: str, numbers: list[int]
) -> None:
    assert ids(page, text=text) == [pair(number) for number in numbers]


def test_a_pair_comes_with_its_question_picture_and_marked_words(
    page: RunPage,
) -> None:
    (item,) = page.view("pairs", {"text": "red dog 17"})["items"]
    assert item["question"] == "What is in picture 1?"
    assert (item["step"], item["version"], item["margin"]) == (5, 4, 2.7)
    chosen, rejected = item["sides"]
    assert ["red dog", "chosen"] in chosen["spans"]
    assert ["blue cat", "rejected"] in rejected["spans"]
    assert (chosen["score"], chosen["note"]) == (1.0, "note 17")
    (sha256,) = item["pictures"]
    assert page.pictures.encoded(sha256)[8:12] == b"WEBP"


def test_a_page_behind_the_last_is_the_last(page: RunPage) -> None:
    last = page.view("pairs", {"page": "99"})
    assert last["page"] == last["num_pages"] - 1
    assert len(last["items"]) == (60 % PAGE or PAGE)


@pytest.mark.parametrize(
    "words",
    [
        {"what": "all; drop table items"},
        {"order": "1"},
        {"step_from": "x"},
        {"page": "inf"},
        {"page": "nan"},
        {"margin_to": "1e999"},
    ],
)
def test_words_that_are_no_filter_are_refused(words: dict[str, str]) -> None:
    with pytest.raises(UserError, match="expected"):
        Filter.of_words(words)


def test_of_a_long_answer_it_is_said_how_much_is_left_out(tmp_path: Path) -> None:
    """Of its sides, and of the list of all answers."""
    text = "x" * (SHOWN_CHARACTERS + 7)
    with RunPage(write_run(tmp_path / "run", 4, [text])) as run:
        run.store.read_all()
        item = run.view("pairs", {})["items"][0]
    assert [side["left_out"] for side in item["sides"]] == [0, 7]
    assert [answer["left_out"] for answer in item["answers"]] == [0, 7]


def test_texts_of_models_stay_what_they_are(tmp_path: Path) -> None:
    with RunPage(write_run(tmp_path / "run", 4, [HOSTILE])) as run:
        run.store.read_all()
        items = run.view("pairs", {})["items"]
    text = "".join(span[0] for span in items[0]["sides"][1]["spans"])
    assert text == HOSTILE
