"""The prompt sampler: every prompt once per epoch, across kills."""

import random
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.sampling.prompt_sampler import PromptSampler, restore
from common.data.records_on_disk import RecordsOnDisk, id_key
from common.records import Dropped, Prompt

PROMPTS = [Prompt(f"p{index}", (), ()) for index in range(5)]


def take(sampler: PromptSampler, count: int) -> list[str]:
    """The ids of the next `count` groups."""
    group_ids = []
    for _ in range(count):
        group_id, prompt = sampler.next()
        assert isinstance(prompt, Prompt)
        assert group_id.endswith(f":{prompt.id}")
        group_ids.append(group_id)
    return group_ids


def test_epochs_are_seeded_permutations() -> None:
    sampler = PromptSampler(PROMPTS, seed=3)
    first = take(sampler, 5)
    second = take(sampler, 5)
    assert sorted(first) == ["0:p0", "0:p1", "0:p2", "0:p3", "0:p4"]
    assert sorted(second) == ["1:p0", "1:p1", "1:p2", "1:p3", "1:p4"]
    assert take(PromptSampler(PROMPTS, seed=3), 5) == first
    orders = [take(PromptSampler(PROMPTS, seed), 5) for seed in range(4, 9)]
    assert any(order != first for order in orders)


@given(seed=st.integers(0, 1000), count=st.integers(0, 23), lost=st.integers(0, 6))
def test_a_resume_repeats_nothing_finished_and_skips_nothing(
    seed: int, count: int, lost: int
) -> None:
    """`count` groups are handed out, all but `lost` of them finish in any order, then the run is killed."""
    sampler = PromptSampler(PROMPTS, seed)
    handed_out = take(sampler, count)
    shuffled = random.Random(seed).sample(handed_out, len(handed_out))
    finished = shuffled[: max(0, count - lost)]
    for group_id in finished:
        sampler.finish(group_id)
    resumed = PromptSampler(PROMPTS, seed, sampler.state)
    group_ids = finished + take(resumed, 30)
    assert len(set(group_ids)) == len(group_ids)
    groups_of_epoch: Counter[int] = Counter()
    for group_id in group_ids:
        groups_of_epoch[int(group_id.partition(":")[0])] += 1
    # The last epoch is still being handed out.
    for epoch in range(max(groups_of_epoch)):
        assert groups_of_epoch[epoch] == len(PROMPTS)


def test_state_stays_small_over_many_epochs() -> None:
    sampler = PromptSampler(PROMPTS, seed=0)
    for _ in range(503):
        group_id, _ = sampler.next()
        sampler.finish(group_id)
    assert sampler.state.epoch == 100
    assert sampler.state.position == 3
    assert not sampler.state.finished


def test_state_grows_with_the_groups_in_flight_and_not_with_the_set() -> None:
    prompts = [Prompt(f"p{index}", (), ()) for index in range(1000)]
    sampler = PromptSampler(prompts, seed=0)
    group_ids = take(sampler, 900)
    # One straggler, and a few that overtake it.
    for group_id in [*group_ids[:700], *group_ids[701:705]]:
        sampler.finish(group_id)
    assert sampler.state.position == 700
    assert sampler.state.finished == set(group_ids[701:705])
    sampler.finish(group_ids[700])
    assert sampler.state.position == 705
    assert not sampler.state.finished


def test_a_set_that_has_changed_is_taken_up_by_its_ids() -> None:
    """Of 5 prompts 3 are finished; then one of these is gone and two are new: 4 are left of the epoch."""
    sampler = PromptSampler(PROMPTS, seed=3)
    finished = take(sampler, 3)
    for group_id in finished:
        sampler.finish(group_id)
    state = sampler.state
    gone = finished[1].partition(":")[2]
    kept = [prompt for prompt in PROMPTS if prompt.id != gone]
    prompts = [*kept, Prompt("new", (), ()), Prompt("newer", (), ())]
    restore(state, prompts, lambda: finished)
    resumed = PromptSampler(prompts, 3, state)
    group_ids = take(resumed, 4)
    assert set(group_ids).isdisjoint(finished)
    assert {"0:new", "0:newer"} <= set(group_ids)
    assert take(resumed, 1)[0].startswith("1:")
    for group_id in group_ids:
        resumed.finish(group_id)
    assert (state.epoch, state.position, state.finished) == (1, 0, set())


@given(
    seed=st.integers(0, 50),
    count=st.integers(0, 12),
    lost=st.integers(0, 4),
    gone=st.sets(st.sampled_from([prompt.id for prompt in PROMPTS]), max_size=4),
)
def test_prompts_that_leave_the_set_bring_nothing_finished_back(
    seed: int, count: int, lost: int, gone: set[str]
) -> None:
    sampler = PromptSampler(PROMPTS, seed)
    handed_out = take(sampler, count)
    shuffled = random.Random(seed).sample(handed_out, len(handed_out))
    finished = shuffled[: max(0, count - lost)]
    for group_id in finished:
        sampler.finish(group_id)
    kept = [prompt for prompt in PROMPTS if prompt.id not in gone]
    restore(sampler.state, kept, lambda: finished)
    resumed = PromptSampler(kept, seed, sampler.state)
    group_ids = take(resumed, 3 * len(kept))
    assert len(set(group_ids)) == len(group_ids)
    assert set(group_ids).isdisjoint(finished)


def test_an_epoch_whose_last_prompt_left_the_set_is_over() -> None:
    """Of A, B and C two are finished and the third, in flight, is gone: epoch 1 begins, and 0:A never comes again."""
    sampler = PromptSampler(PROMPTS[:3], seed=0)
    *finished, in_flight = take(sampler, 3)
    for group_id in finished:
        sampler.finish(group_id)
    gone = in_flight.partition(":")[2]
    kept = [prompt for prompt in PROMPTS[:3] if prompt.id != gone]
    restore(sampler.state, kept, lambda: finished)
    resumed = PromptSampler(kept, 0, sampler.state)
    group_ids = take(resumed, 2)
    assert sorted(group_ids) == sorted(f"1:{prompt.id}" for prompt in kept)


def test_a_set_that_is_the_same_needs_no_journal() -> None:
    sampler = PromptSampler(PROMPTS, seed=3)
    for group_id in take(sampler, 3):
        sampler.finish(group_id)

    def unread() -> list[str]:
        raise AssertionError("the position is true")

    restore(sampler.state, list(reversed(PROMPTS)), unread)
    assert sampler.state.position == 3


def test_rows_that_cannot_be_read_end_with_their_epoch() -> None:
    """Their ids are unknown: they share a name, and their keys are made of something else."""

    def read(number: int) -> Prompt | Dropped:
        if number < 2:
            return Dropped("unreadable", "bad_row", "no UTF-8")
        return PROMPTS[number]

    keys = [7, 8, *(id_key(prompt.id) for prompt in PROMPTS[2:])]
    prompts = RecordsOnDisk(read, np.arange(5), np.array(keys))
    sampler = PromptSampler(prompts, seed=0)
    for _ in range(23):
        group_id, _ = sampler.next()
        sampler.finish(group_id)
    assert sampler.state.epoch == 4
    assert len(sampler.state.finished) <= 3


def test_a_prompt_is_read_when_its_turn_comes() -> None:
    read_numbers: list[int] = []

    def read(number: int) -> Prompt | Dropped:
        read_numbers.append(number)
        return PROMPTS[number]

    keys = np.array([id_key(prompt.id) for prompt in PROMPTS])
    prompts = RecordsOnDisk(read, np.arange(5), keys)
    sampler = PromptSampler(prompts, seed=1)
    assert not read_numbers
    first, _ = sampler.next()
    assert len(read_numbers) == 1
    sampler.finish(first)
    # Nor are those read that are finished, after a resume.
    resumed = PromptSampler(prompts, seed=1, state=sampler.state)
    group_ids = take(resumed, 4)
    assert first not in group_ids
    assert sorted(read_numbers) == [0, 1, 2, 3, 4]
    # A list of prompts gives the same order.
    assert [first, *group_ids] == take(PromptSampler(PROMPTS, seed=1), 5)
