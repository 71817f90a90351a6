"""Changes from the start policy: paired intervals, and when a policy is the worse one."""

from __future__ import annotations

import numpy as np
import pytest

from common import config
from common.evaluation import Comparison, SuiteAnswers
from common.records import Verdict
from common.seeding import derive_seed
from reward.shapes_world import ShapesSuite
from reward.suites.bootstrap import columns_of, interval, resample
from reward.suites.changes import Change, changes_of, common_answers, harm_of
from tests.reward.builders import SCENE, TRUE, caption_prompt, group

SUITE = ShapesSuite(config.ShapesSuite())
INVENTED = "There is a red circle. There is a green ring."


def captions(*texts: str, skip: int | None = None) -> SuiteAnswers:
    groups = []
    for index, text in enumerate(texts):
        if index != skip:
            groups.append(group(caption_prompt(SCENE, f"s{index}"), text))
    return SuiteAnswers({"captions": tuple(groups)})


def changes(
    policy: SuiteAnswers, start: SuiteAnswers, verdicts: dict[str, Verdict]
) -> dict[str, Change]:
    beside_itself = {id: Verdict((0.0, 0.0)) for id in verdicts}
    return changes_of(
        SUITE.measure(policy, Comparison(start, verdicts), 500),
        SUITE.measure(start, Comparison(start, beside_itself), 500),
        SUITE.metrics,
    )


def test_the_interval_is_that_of_the_paired_differences() -> None:
    """Hard scenes are hard for both: 3 of 20 captions change, all for the worse.

    chair_s: 10 of 20 before, 13 after. Paired, the difference is the mean of twenty values of which three are 1.
    """
    start = captions(*[INVENTED] * 10, *[TRUE] * 10)
    policy = captions(*[INVENTED] * 13, *[TRUE] * 7)
    change = changes(policy, start, {})["chair_s"]
    assert change.value == pytest.approx(0.15)
    rows = [{"difference": int(index in (10, 11, 12))} for index in range(20)]
    columns = columns_of(rows, ["difference"])
    means = resample(
        columns,
        lambda totals: {"mean": totals["difference"] / 20},
        500,
        derive_seed("scorecard"),
    )
    assert change.interval == pytest.approx(interval(means["mean"]))
    # Unpaired, 0.5 and 0.65 of twenty would never be told apart.
    policy_interval = SUITE.measure(policy, None, 500).metrics["chair_s"].interval
    start_interval = SUITE.measure(start, None, 500).metrics["chair_s"].interval
    assert policy_interval is not None and start_interval is not None
    assert policy_interval[0] < start_interval[1]


def test_equal_answers_are_no_change() -> None:
    same = captions(TRUE, INVENTED, TRUE)
    for change in changes(same, same, {}).values():
        assert (change.value, change.interval, change.verdict) == (0, (0, 0), "")


def test_directions() -> None:
    start, policy = captions(*[TRUE] * 8), captions(*[INVENTED] * 8)
    lost = {f"s{index}": Verdict((0.0, 1.0)) for index in range(8)}
    verdicts = {
        name: change.verdict for name, change in changes(policy, start, lost).items()
    }
    worse = ("chair_s", "chair_i", "recall", "win_rate", "selection")
    same = ("attribute_errors", "count_errors")
    assert verdicts == dict.fromkeys(worse, "worse") | dict.fromkeys(same, "")
    assert changes(policy, start, lost)["win_rate"].value == -0.5
    won = {id: Verdict((1.0, 0.0)) for id in lost}
    back = changes(start, policy, won)
    assert {back[name].verdict for name in worse} == {"better"}


def test_only_what_both_answered_is_compared() -> None:
    start = captions(TRUE, INVENTED, TRUE, skip=0)
    policy = captions(INVENTED, TRUE, TRUE, skip=2)
    ours = common_answers(policy, start)
    assert [answered.prompt.id for answered in ours.tasks["captions"]] == ["s1"]
    theirs = common_answers(start, policy)
    assert [answered.prompt.id for answered in theirs.tasks["captions"]] == ["s1"]


def change(verdict: str) -> Change:
    return Change.model_validate({"value": 0, "interval": (0, 0), "verdict": verdict})


@pytest.mark.parametrize(
    ("verdicts", "better_policy"),
    [
        ({"a": "better", "b": ""}, None),
        ({"a": "", "b": "worse"}, "start"),
        ({"a": "better", "b": "worse"}, "neither"),
        ({"aim": "worse", "b": "better"}, "start"),
        ({"aim": "better", "b": "worse"}, "neither"),
    ],
)
def test_which_policy_is_the_better_one(
    verdicts: dict[str, str], better_policy: str | None
) -> None:
    by_metric = {name: change(verdict) for name, verdict in verdicts.items()}
    harm = harm_of({"x.y": by_metric}, ["x.y.aim"])
    if better_policy is None:
        assert harm is None
        return
    assert harm is not None
    assert harm.better_policy == better_policy
    assert all(name.startswith("x.y.") for name in [*harm.worse, *harm.better])


def test_resampled_values_are_those_behind_the_interval() -> None:
    measurement = SUITE.measure(captions(TRUE, INVENTED, TRUE), None, 300)
    samples = measurement.resampled["chair_s"]
    low, high = np.percentile(samples, [2.5, 97.5])
    assert measurement.metrics["chair_s"].interval == (low, high)
