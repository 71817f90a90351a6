"""What every tracker must keep of a run, read from its own files by its own library."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from cluster.trackers.trackers import PACKAGES
from tests.cluster.trackers.readers import READERS, Told
from tests.cluster.trackers.stories import KINDS, QUESTION, TEXTS, VALUES

NAMES = {"mlflow": {"pairs/dropped/no <b>": "pairs/dropped/no _b_"}}
"""Metrics that a tracker cannot call by their names."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    package = PACKAGES.get(name, name)
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"pip install {package}")
    return name


@pytest.fixture(scope="module")
def told(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Told]:
    """In a process of its own; see `stories`."""
    story = "tests.cluster.trackers.stories"
    folder = str(tmp_path_factory.mktemp(kind))
    answer = subprocess.run(
        [sys.executable, "-m", story, kind, folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    runs = json.loads(answer.stdout.splitlines()[-1])
    return {name: Told(**held) for name, held in runs.items()}


def test_every_kind_is_under_contract() -> None:
    assert set(KINDS) == set(READERS) == {"tensorboard", *PACKAGES}


def test_metrics_of_every_step_have_the_names_of_the_run(
    kind: str, told: Mapping[str, Told]
) -> None:
    """Steps 3 and 4 come after a resume, which goes on with the same run."""
    for name, steps in (("good", (1, 2, 3, 4)), ("bad", (1, 2))):
        for metric, value in VALUES.items():
            known_as = NAMES.get(kind, {}).get(metric, metric)
            values = [[step, value] for step in steps]
            assert told[name].values[known_as] == values


def test_a_table_holds_what_was_said(told: Mapping[str, Told]) -> None:
    """Two groups a step, tables at steps 2 and 4; a group without a judge has no score, one without a picture none."""
    rows: list[list[Any]] = []
    for step in (2, 4):
        chosen = [step, QUESTION, TEXTS[0], "chosen", 1.0, "right", True]
        rejected = [step, QUESTION, TEXTS[1], "rejected", -1.0, "wrong", True]
        unjudged = [step, QUESTION, "Nothing.", "", None, "", False]
        rows += 2 * [chosen, rejected, unjudged]
    # MLflow has those with a picture first.
    assert sorted(told["good"].rows, key=str) == sorted(rows, key=str)
    assert told["good"].num_pictures == 8


def test_a_run_that_failed_is_told_from_one_that_ended(
    kind: str, told: Mapping[str, Told]
) -> None:
    """The first start of `good` failed; its resume did not. TensorBoard has no word for either."""
    expected = ("", "") if kind == "tensorboard" else ("finished", "failed")
    assert (told["good"].status, told["bad"].status) == expected


def test_mlflow_has_the_config_by_its_keys(kind: str, told: Mapping[str, Told]) -> None:
    expected = "4" if kind == "mlflow" else None
    assert told["good"].params.get("learner.global_batch") == expected
