"""Online pairs that come again: which, how often, how old, and that no step waits in vain for what was not admitted."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import TypeAdapter

from cluster.sampling.admission import Admission, StalenessWindow
from cluster.sampling.offline_pool import OfflineState
from cluster.sampling.replay import BufferState, ReplayBuffer
from cluster.sampling.reuse import UsedPairs, reuse_metrics
from cluster.sampling.staleness import staleness
from common.config.overrides import load_config
from common.records import PreferencePair, Prompt, Response

SOURCE = "online"


def pair(name: str, version: int = 0) -> PreferencePair:
    prompt = Prompt(name, (), ())
    return PreferencePair(
        name, prompt, Response("yes"), Response("no"), SOURCE, version
    )


def ids(pairs: list[PreferencePair]) -> list[str]:
    return [pair.id for pair in pairs]


def test_the_youngest_come_again_as_often_as_they_may() -> None:
    """Three uses, six pairs a step: two fresh ones are planned, and four come again."""
    used = UsedPairs(3, [], Counter())
    wanted = {SOURCE: 6}
    assert used.planned(wanted) == {SOURCE: 2}
    assert used.again(wanted, 0, 9) == []
    first = [pair(name) for name in "abcdef"]
    used.note(first, [], 0, 9)
    again = used.again(wanted, 0, 9)
    assert ids(again) == list("cdef")
    used.note([pair("g"), pair("h")], again, 0, 9)
    # c and d have one use left, as e and f; the others of the first batch are older than these.
    again = used.again(wanted, 0, 9)
    assert ids(again) == list("efgh")
    used.note([pair("i"), pair("j")], again, 0, 9)
    assert used.counts() == {
        **{"a": 1, "b": 1, "c": 2, "d": 2, "e": 3, "f": 3},
        **{"g": 2, "h": 2, "i": 1, "j": 1},
    }
    assert ids(used.again(wanted, 0, 9)) == list("ghij")
    # Six of the first step and two of the others were fresh: 4 + 0 + 0 more than planned.
    assert used.short(SOURCE, [6, 6, 6]) == 4


def test_what_is_too_old_or_refused_does_not_come_again() -> None:
    used = UsedPairs(2, [], Counter())
    used.note([pair("old", 1), pair("new", 3), pair("refused", 3)], [], 3, 2)
    used.forget("refused")
    assert ids(used.again({SOURCE: 6}, 3, 2)) == ["old", "new"]
    assert ids(used.again({SOURCE: 6}, 4, 2)) == ["new"]
    used.note([], [], 4, 2)
    assert list(used.counts()) == ["new"]


def test_nothing_is_remembered_of_pairs_that_are_used_once() -> None:
    used = UsedPairs(1, [], Counter())
    used.note([pair("a")], [], 0, 9)
    assert used.counts() == {}
    assert used.planned({SOURCE: 5}) == {SOURCE: 5}
    assert used.again({SOURCE: 5}, 0, 9) == []
    assert used.short(SOURCE, [5]) == 0


def test_metrics_of_a_batch() -> None:
    batch = [pair("a"), pair("b"), pair("c"), pair("offline")]
    assert reuse_metrics(batch, {"a": 1, "b": 3, "c": 2, "old": 9}) == {
        "pairs/reused": 2,
        "pairs/uses": 2,
    }
    assert reuse_metrics(batch[3:], {}) == {"pairs/reused": 0}


# Whole runs, in which rollouts take their time.


@dataclass
class World:
    """A run's admission and buffer over `wanted[step - 1]` online pairs a step, with drops and refusals.

    Attributes:
        refused: share of the steps of which the learner refuses a pair.
        batches: the ids of every step.
        ages: of every online pair when it was trained on.
    """

    wanted: list[int]
    uses: int
    max_staleness: int
    seed: int
    refused: float = 0.0
    state: BufferState = field(default_factory=lambda: BufferState(OfflineState(0)))
    totals: Counter[str] = field(default_factory=Counter)
    step: int = 0
    batches: list[list[str]] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)
    num_sampled: int = 0
    num_stale: int = 0

    def train(self, last_step: int) -> None:
        """Train up to this step; groups in flight end when the world ends."""
        buffer = ReplayBuffer(state=self.state, uses=self.uses)
        window = StalenessWindow(
            len(self.wanted),
            1,
            self.max_staleness - (self.uses - 1),
            self.step,
            self.step,
        )
        admission = Admission(
            lambda step: buffer.used.planned({SOURCE: self.wanted[step - 1]})[SOURCE],
            window,
            totals=self.totals,
        )
        admission.on_version(self.step)
        admission.on_short(buffer.used.short(SOURCE, self.wanted[: self.step]))
        rng = random.Random(f"{self.seed} {self.step}")
        while self.step < last_step:
            self._take(buffer, admission, rng)
            self.step += 1
            admission.on_version(self.step)

    def _take(
        self, buffer: ReplayBuffer, admission: Admission, rng: random.Random
    ) -> None:
        version, limit = self.step, self.max_staleness
        wanted = {SOURCE: self.wanted[self.step]}
        again = buffer.used.again(wanted, version, limit)
        missing = {SOURCE: wanted[SOURCE] - len(again)}
        planned = buffer.used.planned(wanted)[SOURCE]
        admission.on_short(missing[SOURCE] - planned)
        fresh: list[PreferencePair] = []
        while len(fresh) < missing[SOURCE]:
            for _ in buffer.evict(version, limit):
                admission.on_discarded()
                self.num_stale += 1
            self._sample(buffer, admission, rng, version)
            fresh = buffer.take(missing)
        buffer.used.note(fresh, again, version, limit)
        batch = fresh + again
        self.batches.append(ids(batch))
        for trained in batch:
            age = staleness(trained, version)
            assert age is not None
            self.ages.append(age)
        if batch and rng.random() < self.refused:
            self._refuse(rng.choice(batch), buffer, admission)

    def _sample(
        self, buffer: ReplayBuffer, admission: Admission, rng: random.Random, v: int
    ) -> None:
        """As many groups as may start; some are dropped."""
        num_groups = admission.admit(rng.randint(1, 8))
        for _ in range(num_groups):
            self.num_sampled += 1
            if rng.random() < 0.3:
                admission.on_dropped()
            else:
                buffer.add(pair(f"{self.seed} {self.num_sampled}", v))
                admission.on_accepted()

    def _refuse(
        self, refused: PreferencePair, buffer: ReplayBuffer, admission: Admission
    ) -> None:
        if buffer.used.counts()[refused.id] == 1:
            admission.on_discarded()
        buffer.used.forget(refused.id)


def check(world: World) -> None:
    """Every batch is whole, no pair comes twice in it, too often or too old."""
    assert [len(batch) for batch in world.batches] == world.wanted
    for batch in world.batches:
        assert len(set(batch)) == len(batch)
    uses: Counter[str] = Counter()
    for batch in world.batches:
        uses.update(batch)
    assert max(uses.values()) <= world.uses
    assert max(world.ages) <= world.max_staleness


@pytest.mark.parametrize("refused", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(20))
def test_batches_are_whole_and_no_pair_is_used_too_often_or_too_old(
    seed: int, refused: float
) -> None:
    rng = random.Random(seed)
    uses = rng.randint(2, 4)
    wanted = [rng.randint(0, 9) for _ in range(40)]
    world = World(wanted, uses, uses - 1 + rng.randint(0, 2), seed, refused)
    world.train(40)
    check(world)
    # A refused pair is made up for by one that no step may want.
    assert refused or not world.num_stale


@pytest.mark.parametrize("max_staleness", [1, 3])
def test_two_uses_need_half_the_pairs(max_staleness: int) -> None:
    world = World([6] * 50, 2, max_staleness, seed=0)
    world.train(50)
    check(world)
    # The pairs of the first step are all fresh.
    num_different = len({name for batch in world.batches for name in batch})
    assert num_different == 6 + 3 * 49


@pytest.mark.parametrize("seed", range(5))
def test_a_resumed_run_still_fills_its_batches(seed: int) -> None:
    adapter = TypeAdapter(BufferState)
    world = World([5, 8, 2, 7] * 6, 2, 2, seed)
    world.train(11)
    state: Any = json.loads(adapter.dump_json(world.state))
    # What was in flight is gone; what waits and what was used is there.
    world.state = adapter.validate_python(state)
    world.train(24)
    check(world)


def test_rollouts_run_ahead_by_less_where_pairs_come_again() -> None:
    def run_ahead(*words: str) -> int:
        return load_config(None, ["--mixture.online_fraction=1", *words]).run_ahead

    assert run_ahead() == 1
    assert run_ahead("--mixture.online_uses=2") == 0
    assert run_ahead("--mixture.online_uses=3", "--loop.max_staleness=4") == 2
    every_other = ("--loop.publish_interval=2", "--checkpoint.interval=2")
    assert run_ahead("--mixture.online_uses=3", *every_other) == 0
