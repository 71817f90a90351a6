from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from common.errors import UserError
from common.records import (
    Dropped,
    ImageRef,
    Message,
    Part,
    PreferencePair,
    Prompt,
    Response,
)
from cluster.replay import ReplayBuffer
from cluster.staleness import is_stale, staleness


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


def ids(pairs: list[PreferencePair]) -> list[str]:
    return [each.id for each in pairs]


def test_offline_epochs_repeat_nothing() -> None:
    buffer = ReplayBuffer(OFFLINE, seed=3)
    taken = ids([pair for _ in range(10) for pair in buffer.take_offline(3)])
    epochs = [taken[:10], taken[10:20], taken[20:]]
    assert all(sorted(epoch) == ids(OFFLINE) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_offline_order_is_seeded() -> None:
    orders = [ids(ReplayBuffer(OFFLINE, seed).take_offline(10)) for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


def test_online_is_first_in_first_out() -> None:
    buffer = ReplayBuffer()
    for number in range(4):
        buffer.add(pair(f"online-{number}", version=0))
    assert buffer.num_online == 4
    assert ids(buffer.take(2, 0, 0)[0]) == ["online-0", "online-1"]
    assert ids(buffer.take(2, 0, 0)[0]) == ["online-2", "online-3"]


def test_stale_pairs_are_dropped_with_their_reason() -> None:
    """Versions 0, 2, 1, 3 at learner version 3 with max_staleness 1: ages 3, 1, 2, 0; the first and third go."""
    buffer = ReplayBuffer()
    for version in (0, 2, 1, 3):
        buffer.add(pair(f"v{version}", version))
    pairs, dropped = buffer.take(2, learner_version=3, max_staleness=1)
    assert ids(pairs) == ["v2", "v3"]
    assert [(drop.id, drop.reason) for drop in dropped] == [
        ("v0", "stale"),
        ("v1", "stale"),
    ]
    assert buffer.num_online == 0


def test_too_few_fresh_pairs_stay_in_the_buffer() -> None:
    buffer = ReplayBuffer()
    buffer.add(pair("old", 0))
    buffer.add(pair("new", 5))
    pairs, dropped = buffer.take(2, learner_version=5, max_staleness=1)
    assert pairs == []
    assert ids_of(dropped) == ["old"]
    assert ids(buffer.take(1, 5, 1)[0]) == ["new"]


def ids_of(dropped: list[Dropped]) -> list[str]:
    return [drop.id for drop in dropped]


def test_staleness() -> None:
    assert staleness(pair("a", 2), 5) == 3
    assert staleness(pair("a"), 5) is None
    assert not is_stale(pair("a"), 100, 0)


def test_state_goes_through_json() -> None:
    buffer = ReplayBuffer(OFFLINE, seed=1)
    buffer.take_offline(13)
    for number in range(3):
        buffer.add(pair(f"online-{number}", version=number))
    state = json.loads(json.dumps(buffer.state_dict()))
    resumed = ReplayBuffer(OFFLINE, seed=1)
    resumed.load_state_dict(state)
    assert resumed.take(3, 2, 5) == buffer.take(3, 2, 5)
    assert [resumed.take_offline(4) for _ in range(6)] == [
        buffer.take_offline(4) for _ in range(6)
    ]


def test_a_changed_offline_set_is_refused() -> None:
    resumed = ReplayBuffer(OFFLINE[:9], seed=1)
    with pytest.raises(
        UserError, match="expected the 10 pairs this run began with, got 9"
    ):
        resumed.load_state_dict(ReplayBuffer(OFFLINE, seed=1).state_dict())


def test_an_empty_offline_set_cannot_be_read() -> None:
    assert ReplayBuffer().take_offline(0) == []
    with pytest.raises(UserError, match="got an empty set"):
        ReplayBuffer().take_offline(1)


@pytest.mark.parametrize(
    "module", ["cluster.replay", "cluster.mixture", "cluster.staleness"]
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
        buffer.add(replace(pair(f"p{number}", version=0), source="ab"[number % 2]))
    assert buffer.take({"a": 2, "b": 4}, 0, 0) == ([], [])
    assert ids(buffer.take({"a": 1, "b": 2}, 0, 0)[0]) == ["p0", "p1", "p3"]
    assert ids(buffer.take({"a": 2, "b": 0}, 0, 0)[0]) == ["p2", "p4"]
    assert ids(buffer.take(1, 0, 0)[0]) == ["p5"]


def test_evicted_pairs_come_with_their_reason() -> None:
    buffer = ReplayBuffer()
    buffer.add(pair("old", 0))
    buffer.add(pair("new", 5))
    assert [(each.id, drop.reason) for each, drop in buffer.evict(5, 1)] == [
        ("old", "stale")
    ]
    assert buffer.evict(5, 1) == []
    assert buffer.num_online == 1


def test_pairs_of_a_prompt_stay_together() -> None:
    """5 prompts of 2 pairs each, in batches of 4: two whole prompts a batch, and every epoch another order."""
    pairs = [
        replace(
            pair(f"{source}-{number}"), prompt=pair(f"{number}").prompt, source=source
        )
        for source in ("povid", "bdhs")
        for number in range(5)
    ]
    buffer = ReplayBuffer(pairs, seed=3, by_prompt=True)
    taken = [each for _ in range(5) for each in buffer.take_offline(4)]
    assert all(
        first.prompt == second.prompt
        for first, second in zip(taken[::2], taken[1::2], strict=True)
    )
    assert [each.source for each in taken] == ["povid", "bdhs"] * 10
    assert sorted(ids(taken[:10])) == sorted(ids(taken[10:])) == sorted(ids(pairs))
    assert ids(taken[:10]) != ids(taken[10:])
