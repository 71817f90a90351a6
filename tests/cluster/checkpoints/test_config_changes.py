"""Which changes of a config a resume takes, and what becomes of scores that another config has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.checkpoints.config_changes import changes
from cluster.evaluation.finished_run import read_run
from cluster.run.run_dir import RunDir
from cluster.run.state import RunState
from common.config import RunConfig
from common.evaluation import Score
from tests.cluster.runs import events, killed_at, make_config, run


def resolved(**sections: Any) -> dict[str, Any]:
    """A run's config as config.json has it."""
    config = RunConfig.model_validate({"mixture": {"online_fraction": 1}, **sections})
    content: dict[str, Any] = json.loads(config.model_dump_json())
    return content


def refused(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [change.key for change in changes(before, now) if not change.is_allowed]


@pytest.mark.parametrize(
    ("before", "now"),
    [("auto", "object_store"), ("object_store", "adapter"), ("adapter", "auto")],
)
def test_a_lora_run_may_change_its_transport(before: str, now: str) -> None:
    """With the transport changes what it carries, model.tuning.push."""
    model = {"tuning": {"kind": "lora", "r": 8}}
    configs = [
        resolved(model=model, weights={"transport": way}) for way in (before, now)
    ]
    keys = [change.key for change in changes(*configs)]
    assert keys == ["model.tuning.push", "weights.transport"]
    assert refused(*configs) == []


def test_a_section_that_an_older_version_lacks_differs_key_by_key() -> None:
    now = resolved()
    before = {
        name: part for name, part in now.items() if name not in ("weights", "data")
    }
    keys = {change.key for change in changes(before, now)}
    assert {"weights.transport", "weights.bucket_mib", "data.prompts.count"} <= keys
    assert "weights" not in keys
    assert refused(before, now)
    assert all(key.startswith("data.") for key in refused(before, now))
    # And the other way round.
    assert refused(now, before) == refused(before, now)


def test_a_section_that_is_switched_off_is_one_change() -> None:
    before, now = {"data": {"offline": None}}, {"data": {"offline": {"path": "pairs"}}}
    (change,) = changes(before, now)
    assert (change.key, change.before) == ("data.offline", None)


# Scores of another measure.

OTHER_SCENES = '[{ kind = "shapes", validation_scenes = 5, test_scenes = 6 }]'
OTHER_TEST = '[{ kind = "shapes", validation_scenes = 4, test_scenes = 5 }]'
OFTEN = {"checkpoint__interval": 2, "checkpoint__keep": 4}


def killed_in_step_7(tmp_path: Path, **changes: str) -> None:
    """All scores are equal, so that the best checkpoint is the first, of step 2."""
    config = make_config(tmp_path, **OFTEN, **changes)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, resume=True, learner=killed_at(7))


def picked(run_dir: Path) -> int:
    (event,) = events(run_dir, "picked")
    step: int = event["step"]
    return step


@pytest.mark.parametrize("num_kills", [1, 2])
def test_the_best_score_is_forgotten_when_another_is_measured(
    num_kills: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a kill came before the first checkpoint of the new measure."""
    killed_in_step_7(tmp_path)
    for _ in range(num_kills - 1):
        killed_in_step_7(tmp_path, evaluation__suites=OTHER_SCENES)
    config = make_config(tmp_path, **OFTEN, evaluation__suites=OTHER_SCENES)
    _, run_dir = run(config, resume=True)
    assert (
        "the best score so far, of step 2, was measured by another evaluation.suites.0.validation_scenes: the next "
        "checkpoint becomes the best"
    ) in caplog.messages
    assert picked(run_dir) == 8


def test_the_best_score_stays_when_only_the_test_is_another(tmp_path: Path) -> None:
    killed_in_step_7(tmp_path)
    others = {"evaluation__bootstrap_samples": 30, "evaluation__suites": OTHER_TEST}
    _, run_dir = run(make_config(tmp_path, **OFTEN, **others), resume=True)
    assert picked(run_dir) == 2


def test_a_finished_run_is_measured_again_in_another_size(tmp_path: Path) -> None:
    """`cluster.library.train` only reads a run that has a scorecard."""
    _, run_dir = run(make_config(tmp_path))
    scorecard = run_dir / "scorecard.json"
    with RunDir(make_config(tmp_path, evaluation__samples_shown=1), resume=True):
        assert scorecard.exists()
    config = make_config(tmp_path, evaluation__suites=OTHER_TEST)
    with RunDir(config, resume=True):
        assert not scorecard.exists()
    run(config, resume=True)
    counts = read_run(run_dir).final.suites["shapes"].counts
    assert counts["num_captions"] == 5


def test_a_best_checkpoint_stays_until_another_has_a_score() -> None:
    state = RunState.fresh(num_offline=0)
    assert state.measure_by({"select": "a"}) == []
    assert state.note_score(4, Score(0.5))
    assert state.measure_by({"select": "a"}) == []
    restored = RunState.model_validate(json.loads(state.to_json()))
    assert restored.measure_by({"select": "b"}) == ["evaluation.select"]
    assert (restored.best_step, restored.best_score) == (4, None)
    assert restored.measure_by({"select": "b"}) == []
    assert restored.note_score(6, Score(0.1))


def test_a_state_of_an_earlier_version_keeps_its_score() -> None:
    state = RunState.fresh(num_offline=0)
    state.note_score(4, Score(0.5))
    assert state.measure_by({"select": "b"}) == []
    assert state.best_score == 0.5
