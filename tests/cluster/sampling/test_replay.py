"""The replay buffer: seeded epochs offline, first in first out online, and states that go through JSON."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from cluster.sampling.replay import BufferState, ReplayBuffer
from cluster.sampling.staleness import is_stale, staleness
from common.errors import UserError
from common.records import (
    ImageRef,
    Message,
    Part,
    PreferencePair,
    Prompt,
    Response,
)


def pair(name: str, version: int | None = None) -> PreferencePair:
    message = Message("user", (Part("image"), Part("text", "What?")))
    prompt = Prompt(
        f"prompt-{name}",
        (message,),
        (ImageRef("ab", "/x.png"),),
        "truth",
        {"objects": [1, "red"]},
    )
    chosen, rejected = Response("yes", (5, 6, 1)), Response("no")
    return PreferencePair(
        name, prompt, chosen, rejected, "test", version, (1, 2, 3), (1.0, 0.25)
    )


OFFLINE = [pair(f"offline-{number}") for number in range(10)]


def online_buffer(*names: str) -> ReplayBuffer:
    """A buffer with online pairs of version 0."""
    buffer = ReplayBuffer()
    for name in names:
        buffer.add(pair(name, version=0))
    return buffer


def ids(pairs: Iterable[PreferencePair]) -> list[str]:
    return [pair.id for pair in pairs]


def take(buffer: ReplayBuffer, num: int) -> list[str]:
    """Ids of the next online pairs, which all have one source here."""
    return ids(buffer.take({"test": num}))


def test_offline_epochs_repeat_nothing() -> None:
    buffer = ReplayBuffer(OFFLINE, seed=3)
    taken: list[str] = []
    for _ in range(10):
        taken += ids(buffer.take_offline(3))
    first, second, third = taken[:10], taken[10:20], taken[20:]
    assert sorted(first) == sorted(second) == sorted(third) == ids(OFFLINE)
    assert first != second != third


def test_offline_order_is_seeded() -> None:
    first = ReplayBuffer(OFFLINE, seed=3).take_offline(10)
    assert ReplayBuffer(OFFLINE, seed=3).take_offline(10) == first
    assert ReplayBuffer(OFFLINE, seed=4).take_offline(10) != first


def test_online_is_first_in_first_out() -> None:
    buffer = online_buffer("a", "b", "c", "d")
    assert buffer.num_online == 4
    assert take(buffer, 2) == ["a", "b"]
    assert take(buffer, 2) == ["c", "d"]


def test_stale_pairs_are_dropped_with_their_reason() -> None:
    """Versions 0, 2, 1, 3 at learner version 3 with max_staleness 1: ages 3, 1, 2, 0; the first and third go."""
    buffer = ReplayBuffer()
    for version in (0, 2, 1, 3):
        buffer.add(pair(f"v{version}", version))
    evicted = buffer.evict(learner_version=3, max_staleness=1)
    assert ids(stale for stale, _ in evicted) == ["v0", "v1"]
    for stale, dropped in evicted:
        assert dropped.id == stale.id
        assert dropped.reason == "stale"
    assert take(buffer, 2) == ["v2", "v3"]
    assert buffer.num_online == 0


def test_too_few_fresh_pairs_stay_in_the_buffer() -> None:
    buffer = ReplayBuffer()
    buffer.add(pair("old", 0))
    buffer.add(pair("new", 5))
    evicted = buffer.evict(learner_version=5, max_staleness=1)
    assert ids(stale for stale, _ in evicted) == ["old"]
    assert take(buffer, 2) == []
    assert take(buffer, 1) == ["new"]


def test_what_is_fresh_stays_when_pairs_are_evicted() -> None:
    buffer = ReplayBuffer()
    buffer.add(pair("old", 0))
    buffer.add(pair("new", 5))
    assert len(buffer.evict(5, 1)) == 1
    assert buffer.evict(5, 1) == []
    assert buffer.num_online == 1


def test_staleness() -> None:
    assert staleness(pair("a", 2), 5) == 3
    assert staleness(pair("a"), 5) is None
    assert not is_stale(pair("a"), 100, 0)


def test_state_goes_through_json() -> None:
    buffer = ReplayBuffer(OFFLINE, seed=1)
    buffer.take_offline(13)
    for number in range(3):
        buffer.add(pair(f"online-{number}", version=number))
    adapter = TypeAdapter(BufferState)
    state = adapter.validate_json(adapter.dump_json(buffer.state))
    resumed = ReplayBuffer(OFFLINE, seed=1, state=state)
    assert resumed.take({"test": 3}) == buffer.take({"test": 3})
    for _ in range(6):
        assert resumed.take_offline(4) == buffer.take_offline(4)


def test_a_changed_offline_set_is_refused() -> None:
    state = ReplayBuffer(OFFLINE, seed=1).state
    with pytest.raises(
        UserError, match="expected the 10 pairs this run began with, got 9"
    ):
        ReplayBuffer(OFFLINE[:9], seed=1, state=state)


def test_an_empty_offline_set_cannot_be_read() -> None:
    assert ReplayBuffer().take_offline(0) == []
    with pytest.raises(UserError, match="got an empty set"):
        ReplayBuffer().take_offline(1)


@pytest.mark.parametrize(
    "module",
    [
        "cluster.sampling.replay",
        "cluster.sampling.mixture",
        "cluster.sampling.staleness",
    ],
)
def test_the_controllers_part_is_light(module: str) -> None:
    """The loop's process plans batches; it must not pay for torch."""
    script = f"import sys, {module}; print({{'torch', 'transformers', 'deepspeed'}} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "set()"


def test_pairs_are_taken_by_source_oldest_first() -> None:
    buffer = ReplayBuffer()
    for number in range(6):
        source = "even" if number % 2 == 0 else "odd"
        buffer.add(replace(pair(f"p{number}", version=0), source=source))
    assert buffer.take({"even": 2, "odd": 4}) == []
    assert ids(buffer.take({"even": 1, "odd": 2})) == ["p0", "p1", "p3"]
    assert ids(buffer.take({"even": 2, "odd": 0})) == ["p2", "p4"]
    assert ids(buffer.take({"odd": 1})) == ["p5"]


def test_pairs_of_a_prompt_stay_together() -> None:
    """5 prompts of 2 pairs each, in batches of 4: two whole prompts a batch, and every epoch another order."""
    pairs = []
    for source in ("povid", "bdhs"):
        for number in range(5):
            prompt = pair(f"{number}").prompt
            name = f"{source}-{number}"
            pairs.append(replace(pair(name), prompt=prompt, source=source))
    buffer = ReplayBuffer(pairs, seed=3, draw="by_prompt")
    taken: list[PreferencePair] = []
    for _ in range(5):
        taken += buffer.take_offline(4)
    for first, second in zip(taken[::2], taken[1::2], strict=True):
        assert first.prompt == second.prompt
        assert (first.source, second.source) == ("povid", "bdhs")
    first_epoch, second_epoch = ids(taken[:10]), ids(taken[10:])
    assert sorted(first_epoch) == sorted(second_epoch) == sorted(ids(pairs))
    assert first_epoch != second_epoch


@pytest.mark.parametrize("seed", range(20))
def test_what_is_foreseen_is_taken_first(seed: int) -> None:
    """Whatever arrives in between, while pairs of both sources age."""
    rng = random.Random(seed)
    buffer = ReplayBuffer(OFFLINE, seed=seed)

    def arrive(num: int) -> None:
        for _ in range(num):
            name, version = f"{rng.random()}", rng.randint(0, 4)
            online = replace(pair(name, version), source=rng.choice(["a", "b"]))
            buffer.add(online)

    arrive(rng.randint(0, 8))
    wanted = {"a": rng.randint(0, 3), "b": rng.randint(0, 3)}
    before = list(buffer.state.online)
    foreseen = buffer.foresee(wanted, learner_version=4, max_staleness=2)
    foreseen_offline = buffer.foresee_offline(7)
    assert list(buffer.state.online) == before
    arrive(30)
    buffer.evict(learner_version=4, max_staleness=2)
    assert buffer.take(wanted)[: len(foreseen)] == foreseen
    assert buffer.take_offline(7) == foreseen_offline
    # Over the end of an epoch, and of the next one at most.
    for num in (5, 8, 10):
        assert buffer.foresee_offline(num) == buffer.take_offline(num)
    assert len(buffer.foresee_offline(100)) == 10
