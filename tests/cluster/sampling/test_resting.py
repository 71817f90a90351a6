"""Prompts that teach nothing rest: how often they come, that no pair is lost by it, and what a resume makes of it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import asdict

import pytest
from pydantic import ValidationError

from cluster.run.outcome import GroupOutcome
from cluster.sampling.prompt_sampler import PromptSampler, SamplerState
from cluster.sampling.resting import LEAST, Resting, chance
from common.config import Rollout
from common.records import Dropped, Prompt

NUM_PROMPTS = 400
PROMPTS = [Prompt(f"p{index}", (), ()) for index in range(NUM_PROMPTS)]


def test_chances_by_hand() -> None:
    assert [chance(num_idle) for num_idle in (0, 1, 2, 3, 9)] == [
        1,
        1 / 2,
        1 / 4,
        LEAST,
        LEAST,
    ]


def test_a_prompt_comes_as_often_as_its_chance_says() -> None:
    """Over 4,000 epochs within 0.03: a standard error is 0.008."""
    for num_idle in range(1, 5):
        resting = Resting(0, {7: num_idle})
        num_over = sum(resting.drawn(epoch) == [7] for epoch in range(4000))
        assert abs(1 - num_over / 4000 - chance(num_idle)) < 0.03


def test_a_pair_wakes_a_prompt() -> None:
    idle: dict[int, int] = {}
    resting = Resting(0, idle)
    resting.note(7, False)
    resting.note(7, False)
    assert idle == {7: 2}
    resting.note(7, True)
    assert idle == {}


def groups_of_epochs(
    sampler: PromptSampler, num_groups: int, useful: set[str]
) -> list[Counter[str]]:
    """Hands out groups one after the other; those of `useful` prompts give pairs. Returns prompts by epoch."""
    epochs: list[Counter[str]] = []
    for _ in range(num_groups):
        group_id, prompt = sampler.next()
        assert isinstance(prompt, Prompt)
        epoch = int(group_id.partition(":")[0])
        while len(epochs) <= epoch:
            epochs.append(Counter())
        epochs[epoch][prompt.id] += 1
        sampler.finish(group_id, taught=prompt.id in useful)
    return epochs


def test_useful_prompts_come_every_epoch_and_the_others_rarely() -> None:
    useful = {f"p{index}" for index in range(80)}
    sampler = PromptSampler(PROMPTS, seed=0, rest_solved=True)
    *whole, _ = groups_of_epochs(sampler, 1500, useful)
    assert len(whole) > 4
    # New prompts first: the first epoch has all.
    assert len(whole[0]) == NUM_PROMPTS
    for epoch in whole:
        assert set(epoch) >= useful
        assert set(epoch.values()) == {1}
    others = [len(set(epoch) - useful) for epoch in whole]
    assert others[1] == pytest.approx(160, abs=30)
    assert others[2] < 130


def test_without_resting_every_epoch_has_all() -> None:
    sampler = PromptSampler(PROMPTS, seed=0)
    first, second = groups_of_epochs(sampler, 2 * NUM_PROMPTS, set())
    assert len(first) == len(second) == NUM_PROMPTS
    assert sampler.state.idle == {}


def test_it_saves_rollouts_where_most_prompts_are_solved() -> None:
    """A simulation: a fifth of the groups give pairs, most of them of the same prompts, as in the demo."""
    draws = random.Random(0)
    # A mean of 0.21.
    chances = {}
    for index in range(2000):
        chances[f"p{index}"] = draws.betavariate(0.15, 0.56)
    prompts = [Prompt(id, (), ()) for id in chances]

    def num_groups(rest_solved: bool) -> int:
        sampler = PromptSampler(prompts, seed=0, rest_solved=rest_solved)
        num_pairs = num_groups = 0
        while num_pairs < 1600:
            group_id, prompt = sampler.next()
            assert isinstance(prompt, Prompt)
            taught = draws.random() < chances[prompt.id]
            sampler.finish(group_id, taught)
            num_groups += 1
            num_pairs += taught
        return num_groups

    assert num_groups(False) / num_groups(True) > 1.25


def test_a_resume_knows_who_rests() -> None:
    useful = {"p0"}
    sampler = PromptSampler(PROMPTS, seed=0, rest_solved=True)
    groups_of_epochs(sampler, 700, useful)
    state = SamplerState(**asdict(sampler.state))
    resumed = PromptSampler(PROMPTS, 0, state, rest_solved=True)
    for _ in range(300):
        assert sampler.next()[0] == resumed.next()[0]


def test_who_rests_is_drawn_once_whatever_is_settled_later() -> None:
    """Groups are in flight when the next epoch begins; a resume after they ended passes over the same prompts."""
    sampler = PromptSampler(PROMPTS, seed=0, rest_solved=True)
    groups_of_epochs(sampler, NUM_PROMPTS - 50, set())
    in_flight = [sampler.next()[0] for _ in range(50)]
    second = [sampler.next()[0] for _ in range(40)]
    passed_over = sampler.state.resting[1]
    assert len(passed_over) > 100
    assert sampler.state.num_rested == len(passed_over)
    for group_id in in_flight:
        sampler.finish(group_id, taught=False)
    for group_id in second[:10]:
        sampler.finish(group_id, taught=True)
    state = SamplerState(**asdict(sampler.state))
    resumed = PromptSampler(PROMPTS, 0, state, rest_solved=True)
    # What was in flight comes again, and then what had not come yet.
    assert [resumed.next()[0] for _ in range(30)] == second[10:]
    assert resumed.next()[0] == sampler.next()[0]
    assert resumed.state.num_rested == len(passed_over)


def test_what_teaches() -> None:
    reasons = {"identical": False, "tie": False, "cut_off": None, "judge_failed": None}
    for reason, taught in reasons.items():
        assert GroupOutcome("g", dropped=Dropped("g", reason)).taught is taught
    assert GroupOutcome("g").taught is True


def test_a_deterministic_run_rests_nobody() -> None:
    with pytest.raises(ValidationError, match="rest_solved: expected false"):
        Rollout(rest_solved=True, deterministic=True)
