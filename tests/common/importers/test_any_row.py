"""Any row, and any text of one: nothing stops an import, and nothing is lost on the way."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.images import ImageStore
from common.importers import load
from common.importers.base import message
from common.importers.build import outcomes
from common.importers.conversations import strip_vicuna
from common.reading.image_intake import ImageIntake
from common.records import Dropped, PreferencePair, Prompt
from tests.common.importer_cases import CASES, PICTURE

KEYS = sorted(
    {key for case in CASES.values() for key in case.good}
    | {"value", "from", "role", "content", "type", "text"}
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
    | st.sampled_from(["<image>", "a.png", "human", "gpt", "user", "assistant", "USER: a ASSISTANT:"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_row_is_imported_or_counted(data: st.DataObject) -> None:
    """A good row with any field replaced by anything, or anything at all, never stops an import."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for file in ("a.png", "a.jpg"):
            (root / file).write_bytes(PICTURE)
        for name, case in CASES.items():
            row = {
                **case.good,
                data.draw(st.sampled_from(sorted(case.good))): data.draw(VALUES),
            }
            for value in (row, data.draw(VALUES)):
                intake = ImageIntake(root, ImageStore(root / "store"))
                results = list(outcomes(load(name), 0, value, intake))
                assert results
                for result in results:
                    assert isinstance(result, PreferencePair | Prompt | Dropped)


@given(
    st.lists(
        st.sampled_from(["<image>", "\n", " ", "a", "b c", "<image"]), max_size=8
    ).map("".join)
)
def test_markers_are_all_that_is_taken_out_of_a_text(text: str) -> None:
    parts = message("user", text).parts
    assert sum(part.kind == "image" for part in parts) == text.count("<image>")
    joined = "".join("<image>" if part.kind == "image" else part.text for part in parts)
    assert "".join(joined.split()) == "".join(text.split())
    if "<image>" not in text:
        assert joined == text


@given(st.text("aU:SER \n", max_size=12).filter(lambda text: "ASSISTANT:" not in text))
def test_the_vicuna_template_comes_off(text: str) -> None:
    assert (
        strip_vicuna(f"A chat between a user and an AI. USER: {text} ASSISTANT:")
        == text.strip()
    )
    assert strip_vicuna(f"USER:  \n{text} ASSISTANT:") == text.strip()
    assert strip_vicuna(f"What does {text} mean?") == f"What does {text} mean?"
