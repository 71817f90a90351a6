"""All families; a test takes them as `pytest.param`s from `parameters`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

from tests.families.case import Case
from tests.families.gemma import GEMMA3
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA, LLAVA_NEXT
from tests.families.pixtral import MISTRAL3, PIXTRAL
from tests.families.qwen import QWEN2_5_VL, QWEN3_5, QWEN3_VL, QWEN3_VL_MOE
from tests.families.smolvlm import SMOLVLM_CASE

CASES = (
    LLAVA,
    LLAVA_NEXT,
    QWEN2_5_VL,
    QWEN3_VL,
    QWEN3_VL_MOE,
    QWEN3_5,
    INTERNVL,
    GEMMA3,
    PIXTRAL,
    MISTRAL3,
    SMOLVLM_CASE,
)
ON_CPU = tuple(case for case in CASES if case.runs_on_cpu)


def parameters(
    cases: Iterable[Case] = CASES, longer: Collection[str] = ()
) -> list[Any]:
    """A parameter for each case, skipped with the reason where its processor cannot be made here.

    Args:
        longer: names of those that are long tests.
    """
    marked = []
    for case in cases:
        marks = []
        if case.missing_package is not None:
            reason = f"{case.name}'s processor needs {case.missing_package}"
            marks.append(pytest.mark.skip(reason=reason))
        if case.name in longer:
            marks.append(pytest.mark.long)
        marked.append(pytest.param(case, id=case.name, marks=marks))
    return marked
