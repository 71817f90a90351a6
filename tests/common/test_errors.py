"""Errors for the user."""

import pickle

from common.errors import Refused, UserError


def test_a_refusal_survives_a_process_boundary() -> None:
    error = Refused("image_missing", "a.png: expected a readable image file, got none")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, UserError)
    assert isinstance(copy, Refused)
    assert copy.reason == "image_missing"
    assert str(copy) == str(error) == "a.png: expected a readable image file, got none"
