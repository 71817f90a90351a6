"""The prompt sampler: every prompt once per epoch, across kills."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.sampling.prompt_sampler import PromptSampler
from common.records import Prompt

PROMPTS = [Prompt(f"p{index}", (), ()) for index in range(5)]


def take(sampler: PromptSampler, count: int) -> list[str]:
    """The ids of the next `count` groups."""
    group_ids = []
    for _ in range(count):
        group_id, prompt = sampler.next()
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
    assert len(sampler.state.finished) == 3
