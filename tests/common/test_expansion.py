"""Images in expanded prompts by hand: 9 is an image token, 7 and 8 stand between and behind rows of them."""

from __future__ import annotations

from common.chat.expansion import expanded_like


def test_other_text_around_an_image_with_marks() -> None:
    measured = [1, 9, 9, 7, 9, 9, 8, 2, 3]
    assert expanded_like(measured, [[1], [2, 3]], [[4, 5], [6]]) == [
        *(4, 5),
        *(9, 9, 7, 9, 9, 8),
        6,
    ]


def test_two_images_of_different_lengths() -> None:
    measured = [1, 9, 9, 2, 9, 3]
    parts = [[1], [2], [3]]
    assert expanded_like(measured, parts, [[5], [6, 6], []]) == [5, 9, 9, 6, 6, 9]


def test_images_side_by_side() -> None:
    assert expanded_like([9, 9, 9, 3], [[], [], [3]], [[], [], [4]]) == [9, 9, 9, 4]


def test_no_image() -> None:
    assert expanded_like([1, 2], [[1, 2]], [[3]]) == [3]
    assert expanded_like([1, 2, 4], [[1, 2]], [[3]]) is None


def test_text_that_the_processor_changed() -> None:
    """A newline that became one token with that of an image's marks: the parts are not there any more."""
    assert expanded_like([1, 5, 9, 3], [[1, 2], [3]], [[4], [3]]) is None
    assert expanded_like([1, 9, 3], [[1], [3]], [[1]]) is None
