"""The numerics gate on a real engine in bfloat16: nothing is refused without a cause, and every fault is found.

The model has 42 M parameters and logits of about 20. At this size of update a push is late by about a nat a token. A
smaller one is too little for log-probs, and is the checksum's: `python -m benchmarks.numerics_gate` has the sizes, more
pushes, and adapters.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.real_runs import command, run_to_end

pytestmark = [pytest.mark.real, pytest.mark.slow]
FOUND_AT = 0.1
LOGPROB_FAULTS = (
    "stale layer",
    "swapped q and k",
    "one push late",
    "untied head",
    "stale pictures",
)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    words = ("--parts", "honest", "faults", "--pushes", "2", "--updates", str(FOUND_AT))
    output = run_to_end(command("benchmarks.numerics_gate", *words), 600)
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def test_correct_pushes_pass_without_a_warning(result: dict[str, Any]) -> None:
    honest = result["honest"]
    assert result["largest_logit"] == pytest.approx(20, rel=0.15)
    assert honest["warned"] == 0
    assert honest["largest_load"] < 0.7
    # What the tolerance of old refused: no token may differ by 0.1.
    assert honest["start"]["abs_max"] > 0.1
    for row in result["faults"]["none"]:
        assert not row["found"]


@pytest.mark.parametrize("fault", LOGPROB_FAULTS)
def test_a_wrong_push_is_refused(result: dict[str, Any], fault: str) -> None:
    (row,) = result["faults"][fault]
    assert row["found"], row


def test_a_layer_that_gets_nothing_is_named(result: dict[str, Any]) -> None:
    (row,) = result["faults"]["layer left out"]
    assert row["found"]
