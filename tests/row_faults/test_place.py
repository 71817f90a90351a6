"""The place where an exception is raised decides whether it is a row's fault."""

from __future__ import annotations

import pytest

from common.errors import Refused, UserError
from common.records import Dropped
from common.row_faults import drop_report, is_machine_fault, outside_embedding, refusing

OTHER_EXCEPTIONS = [KeyError("size"), TypeError(), RuntimeError("3 != 4"), IndexError()]
"""Some of what libraries raise about a row."""


@pytest.mark.parametrize("error", OTHER_EXCEPTIONS)
def test_the_place_decides_not_the_class(error: Exception) -> None:
    with (
        pytest.raises(Refused, match=r"prompt 7: expected .*, got .*; drop it") as info,
        refusing("processor", "prompt 7: expected a picture", "drop it"),
    ):
        raise error
    assert info.value.reason == "processor"
    assert "\n" not in str(info.value)


def test_a_refusal_keeps_its_reason() -> None:
    with pytest.raises(Refused) as info, refusing("processor", "what", "remedy"):
        raise Refused("image_missing", "a.png: no such file")
    assert info.value.reason == "image_missing"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(28, "No space left on device"),
        OSError(24, "Too many open files"),
        UserError("model.path: expected another model"),
    ],
)
def test_what_no_row_is_to_blame_for_surfaces(error: Exception) -> None:
    with pytest.raises(type(error)) as info, refusing("processor", "what", "remedy"):
        raise error
    assert info.value is error
    assert is_machine_fault(error) != isinstance(error, UserError)


def test_ids_outside_of_the_embedding() -> None:
    assert outside_embedding((0, 7), 8) is None
    assert outside_embedding((0, 8), 8) == 8
    assert outside_embedding((3, -1), 8) == -1
    assert outside_embedding((), 8) is None


def test_a_report_has_an_example_of_each_reason() -> None:
    dropped = [
        Dropped("b", "prompt_too_long", "600 tokens"),
        Dropped("a", "image_missing", "a.png:\n\x1b[31mgone"),
        Dropped("c", "image_missing"),
    ]
    assert drop_report(dropped) == (
        "{'image_missing': 2, 'prompt_too_long': 1}, such as prompt_too_long (b: 600 tokens), "
        "image_missing (a: a.png:  [31mgone)"
    )
    assert drop_report([]) == "{}"
