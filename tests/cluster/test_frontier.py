"""The prompt frontier: every prompt once per epoch, across kills."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.frontier import Frontier
from common.records import Prompt

PROMPTS = [Prompt(f"p{index}", (), ()) for index in range(5)]


def test_epochs_are_seeded_permutations() -> None:
    frontier = Frontier(PROMPTS, seed=3)
    first, second = ([frontier.next()[0] for _ in PROMPTS] for _ in range(2))
    assert sorted(first) == [f"0:p{i}" for i in range(5)]
    assert sorted(second) == [f"1:p{i}" for i in range(5)]
    assert [Frontier(PROMPTS, seed=3).next()[0] for _ in range(2)] == [first[0]] * 2
    assert any(
        [g for g, _ in take(Frontier(PROMPTS, seed=s), 5)] != first for s in range(4, 9)
    )


def take(frontier: Frontier, count: int) -> list[tuple[str, Prompt]]:
    return [frontier.next() for _ in range(count)]


@given(seed=st.integers(0, 1000), count=st.integers(0, 23), lost=st.integers(0, 6))
def test_a_resume_repeats_nothing_finished_and_skips_nothing(
    seed: int, count: int, lost: int
) -> None:
    """`count` groups are handed out, all but `lost` of them finish in any order, then the run is killed."""
    frontier = Frontier(PROMPTS, seed)
    handed = [group_id for group_id, _ in take(frontier, count)]
    shuffled = random.Random(seed).sample(handed, len(handed))
    finished = shuffled[: max(0, count - lost)]
    for group_id in finished:
        frontier.finish(group_id)
    resumed = Frontier(PROMPTS, seed, frontier.state())
    after = [group_id for group_id, _ in take(resumed, 30)]
    everything = finished + after
    assert len(set(everything)) == len(everything)
    counts = Counter(int(group_id.partition(":")[0]) for group_id in everything)
    whole = max(counts)
    assert all(counts[epoch] == len(PROMPTS) for epoch in range(whole))


def test_state_stays_small_over_many_epochs() -> None:
    frontier = Frontier(PROMPTS, seed=0)
    for _ in range(503):
        frontier.finish(frontier.next()[0])
    assert frontier.state()["epoch"] == 100
    assert len(frontier.state()["finished"]) == 3
