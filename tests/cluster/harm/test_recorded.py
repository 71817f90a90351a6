"""What the detectors say of real runs on the shapes world, whose metrics are kept in `recorded/`.

    shapes_mixed         the demo: CHAIR_i 0.24 -> 0.01
    shapes_offline       the preset `shapes_offline`, 31 of 40 steps: CHAIR_i rises, answers get longer
    shapes_offline_nll   its learner alone, with learner.loss.nll_weight = 1: both fall

Of every line the metrics that are watched, rounded.
"""

from __future__ import annotations

from pathlib import Path

from cluster.harm.alert import Alert
from common.metrics import read_lines
from tests.cluster.harm.streams import alerts_of, config_of

RECORDED = Path(__file__).parent / "recorded"


def said_of(run: str) -> list[Alert]:
    config = config_of(rollout={"num_completions": 4, "max_tokens": 72})
    return alerts_of(read_lines(RECORDED / f"{run}.jsonl"), config)


def test_of_the_demo_only_that_its_rollouts_teach_less_and_less() -> None:
    """Which is so: of its groups of four, 68 % say one text in the first ten steps and 84 % in the last."""
    (alert,) = said_of("shapes_mixed")
    assert alert.kind == "diversity"
    assert alert.step > 20
    first, *_, last = read_lines(RECORDED / "shapes_mixed.jsonl")
    assert last["drift/chosen_end"] > 0
    assert last["completions/mean_length"] < first["completions/mean_length"]


def test_plain_offline_dpo_warns_before_step_20() -> None:
    first, *later = said_of("shapes_offline")
    assert first.kind == "end_token"
    assert first.step < 20
    assert {alert.kind for alert in later} <= {"end_token"}


def test_with_an_anchor_there_is_nothing_to_say() -> None:
    assert said_of("shapes_offline_nll") == []
