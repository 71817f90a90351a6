"""What the learner is told of coming batches comes true, place by place, and changes nothing of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from common.config.overrides import load_config
from common.records import Dropped, PreferencePair, StepResult
from tests.cluster.runs import STEPS, make_config, offline_set, run, trained_pairs
from tests.fakes.learner import FakeLearner

BATCH = 4


class Told:
    """What a run's learner was told of its batches, and which it got: step -> place -> pair id."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[int, str]] = {}
        self.batches: dict[int, dict[int, str]] = {}
        told = self

        class Listener(FakeLearner):
            step_s = 0.02

            def prepare(self, step: int, rows: Mapping[int, PreferencePair]) -> None:
                of_step = told.rows.setdefault(step, {})
                assert not of_step.keys() & rows.keys(), "a place is told once"
                of_step.update({place: pair.id for place, pair in rows.items()})

            async def step(
                self, step: int, pairs: list[PreferencePair]
            ) -> tuple[StepResult, list[Dropped]]:
                ids = [pair.id for pair in pairs]
                told.batches[step] = dict(enumerate(ids))
                return await super().step(step, pairs)

        self.learner = Listener

    @property
    def num_rows(self) -> int:
        return sum(len(rows) for rows in self.rows.values())

    def assert_true(self) -> None:
        """Also for pairs that were told while others were still missing."""
        for step, rows in self.rows.items():
            assert rows.items() <= self.batches[step].items(), step


@pytest.mark.parametrize("publish_interval", [1, 2])
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("online_fraction", [0.5, 1])
def test_what_is_told_comes_true(
    tmp_path: Path, online_fraction: float, max_staleness: int, publish_interval: int
) -> None:
    told = Told()
    config = make_config(
        tmp_path,
        learner__input_workers=1,
        loop__max_staleness=max_staleness,
        loop__publish_interval=publish_interval,
        mixture__online_fraction=online_fraction,
        data__offline__path=offline_set(tmp_path / "bdhs", "bdhs", 10),
    )
    run(config, learner=told.learner)
    told.assert_true()
    assert sorted(told.batches) == list(range(1, STEPS + 1))
    # Only what arrives in the last moment before a step is not told.
    assert told.num_rows > STEPS * BATCH / 2


def test_an_offline_run_is_told_all_but_the_first_batch(tmp_path: Path) -> None:
    """Over the ends of epochs: 10 pairs in batches of 4."""
    told = Told()
    config = make_config(
        tmp_path,
        learner__input_workers=1,
        mixture__online_fraction=0,
        data__offline__path=offline_set(tmp_path / "bdhs", "bdhs", 10),
    )
    run(config, learner=told.learner)
    told.assert_true()
    for step in range(2, STEPS + 1):
        assert told.rows[step] == told.batches[step]


def test_a_run_is_the_same_with_workers_and_without(tmp_path: Path) -> None:
    """On-policy: else the version that samples a group is a matter of time."""
    trained = []
    for num_workers in (0, 1):
        told = Told()
        config = make_config(
            tmp_path / str(num_workers),
            learner__input_workers=num_workers,
            rollout__deterministic=True,
            loop__max_staleness=0,
        )
        _, run_dir = run(config, learner=told.learner)
        trained.append(trained_pairs(run_dir))
        assert bool(told.rows) == bool(num_workers)
    assert trained[0] == trained[1]


@pytest.mark.parametrize(
    ("num_gpus", "words", "expected"),
    [(0, [], 0), (1, [], 2), (1, ["0"], 0), (0, ["3"], 3), (1, ["auto"], 2)],
)
def test_automatic_workers_are_for_ranks_on_gpus(
    num_gpus: int, words: list[str], expected: int
) -> None:
    values = [f"--learner.input_workers={word}" for word in words]
    config = load_config(
        None,
        [f"--learner.num_gpus={num_gpus}", "--mixture.online_fraction=1", *values],
    )
    assert config.learner.input_workers == expected
