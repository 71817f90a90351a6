"""Prompts drawn by worth: how often they come, what a draw looks at, and what a resume makes of it."""

from __future__ import annotations

import json
import random
from array import array
from collections import Counter, deque
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cluster.sampling.prompt_sampler import PromptSampler
from cluster.sampling.sampler import Sampler, build_sampler, most_in_flight
from cluster.sampling.worth import Chances, Records
from cluster.sampling.worth_sampler import RoundState, WorthSampler
from common.config import RunConfig
from common.data.records_on_disk import id_key
from common.records import Dropped, Prompt

PROMPTS = [Prompt(f"p{index}", (), ()) for index in range(60)]
IN_FLIGHT = 10


def saved(state: RoundState) -> RoundState:
    """The state as a checkpoint keeps it."""
    adapter = TypeAdapter(RoundState)
    return adapter.validate_python(json.loads(adapter.dump_json(state)))


def groups(
    sampler: Sampler, count: int, teaches: set[str], most_waiting: int = IN_FLIGHT
) -> list[str]:
    """Hand out `count` groups, which end in that order; `most_waiting` have not ended at the same time."""
    handed_out: list[str] = []
    waiting: deque[tuple[str, bool]] = deque()
    for _ in range(count):
        group_id, prompt = sampler.next()
        handed_out.append(group_id)
        waiting.append((group_id, prompt.id in teaches))
        if len(waiting) == most_waiting:
            _end(sampler, *waiting.popleft())
    for group_id, taught in waiting:
        _end(sampler, group_id, taught)
    return handed_out


def _end(sampler: Sampler, group_id: str, taught: bool) -> None:
    sampler.finish(group_id, worth=float(taught))


def test_a_draw_is_in_proportion_to_the_chances() -> None:
    """Two of three prompts, for 6,000 seeds: P(i) = w_i / Σ w, then P(j after i) = w_j / (Σ w - w_i).

    The others of the set have given nothing for ever. A round has two of 40 prompts.
    """
    prompts = PROMPTS[:40]
    known = {id_key(prompt.id): (0.0, 1e9, 0) for prompt in prompts[3:]}
    known |= {id_key("p0"): (1.0, 1.0, 0), id_key("p1"): (0.0, 1.0, 0)}
    keys = [id_key(prompt.id) for prompt in prompts]
    chances = Chances(array("q", sorted(keys)), 1.0, Records(dict(known))).at(0)
    weight = {key: chances[place] ** 3 for place, key in enumerate(sorted(keys))}
    weights = [weight[key] for key in keys]
    counts: Counter[tuple[str, str]] = Counter()
    for seed in range(6000):
        state = RoundState(records=Records(dict(known)))
        sampler = WorthSampler(prompts, seed, state, most_in_flight=4)
        first, second = sampler.next()[1].id, sampler.next()[1].id
        counts[first, second] += 1
    for i in range(3):
        for j in {0, 1, 2} - {i}:
            rest = sum(weights) - weights[i]
            expected = weights[i] / sum(weights) * weights[j] / rest
            # A standard error is at most 0.0065.
            assert counts[f"p{i}", f"p{j}"] / 6000 == pytest.approx(expected, abs=0.02)


def test_the_power_says_how_much_a_chance_counts() -> None:
    """With a mean of 1/2 the chances are (1 + 1/4) / (3/2) and (1/4) / (3/2): 5 to 1, squared 25 to 1."""
    known = {id_key("p0"): (1.0, 1.0, 0), id_key("p1"): (0.0, 1.0, 0)}
    firsts = {0.0: 1 / 2, 1.0: 5 / 6, 2.0: 25 / 26}
    for power, share in firsts.items():
        num_first = 0
        for seed in range(2000):
            state = RoundState(records=Records(dict(known)))
            sampler = WorthSampler(PROMPTS[:2], seed, state, 2, power)
            num_first += sampler.next()[1].id == "p0"
        # A standard error is at most 0.011.
        assert num_first / 2000 == pytest.approx(share, abs=0.035)
        expected = 1 / (share**2 + (1 - share) ** 2)
        assert state.num_effective == pytest.approx(expected)


def test_a_round_has_a_prompt_once() -> None:
    sampler = WorthSampler(PROMPTS, 0, RoundState(), IN_FLIGHT)
    group_ids = groups(sampler, 500, {"p0"})
    assert len(set(group_ids)) == 500
    sizes = Counter(group_id.partition(":")[0] for group_id in group_ids)
    # A sixteenth of 60; the last round is still being handed out.
    assert sorted(set(sizes.values())) == [2, 3]


@given(seed=st.integers(0, 30), most_waiting=st.integers(1, IN_FLIGHT - 1))
def test_how_many_groups_wait_plays_no_part(seed: int, most_waiting: int) -> None:
    teaches = {"p1", "p5", "p30"}
    sampler = WorthSampler(PROMPTS, seed, RoundState(), IN_FLIGHT)
    other = WorthSampler(PROMPTS, seed, RoundState(), IN_FLIGHT)
    drawn = groups(sampler, 120, teaches)
    assert groups(other, 120, teaches, most_waiting) == drawn


def test_a_group_that_is_late_counts_when_it_has_ended() -> None:
    sampler = WorthSampler(PROMPTS, 0, RoundState(), IN_FLIGHT)
    late, prompt = sampler.next()
    groups(sampler, 200, {"p1"})
    records = sampler.state.records.by_prompt
    assert id_key("p1") in records
    # Its round waits with it; the rounds after it do not.
    assert next(iter(sampler.state.worths)) == 0
    assert len(sampler.state.worths) < 8
    sampler.finish(late, worth=1.0)
    groups(sampler, 30, {"p1"})
    assert records[id_key(prompt.id)][0] > 0
    assert 0 not in sampler.state.worths


@given(seed=st.integers(0, 30), count=st.integers(0, 150), lost=st.integers(0, 9))
def test_a_resumed_run_draws_what_the_run_would_have_drawn(
    seed: int, count: int, lost: int
) -> None:
    """A kill after `count` groups, of which `lost` of the last ones had not ended; these come again, and first."""
    teaches = {"p1", "p5", "p30"}
    whole = WorthSampler(PROMPTS, seed, RoundState(), IN_FLIGHT)
    expected = groups(whole, count + 80, teaches)
    killed = WorthSampler(PROMPTS, seed, RoundState(), IN_FLIGHT)
    groups(killed, count, teaches)
    in_flight = [killed.next()[0] for _ in range(lost)]
    assert in_flight == expected[count : count + lost]
    ended, left = in_flight[: lost // 2], in_flight[lost // 2 :]
    for group_id in ended:
        _end(killed, group_id, group_id.partition(":")[2] in teaches)
    resumed = WorthSampler(PROMPTS, seed, saved(killed.state), IN_FLIGHT)
    again = groups(resumed, 80 - len(ended), teaches)
    assert again[: len(left)] == left
    assert again[len(left) :] == expected[count + lost :]


def test_prompts_that_teach_come_often_and_no_other_is_given_up() -> None:
    draws = random.Random(0)
    sampler = WorthSampler(PROMPTS, 0, RoundState(), IN_FLIGHT)
    counts: Counter[str] = Counter()
    for _ in range(8000):
        group_id, prompt = sampler.next()
        counts[prompt.id] += 1
        # Six prompts, every second time.
        taught = prompt.id in {"p0", "p1", "p2", "p3", "p4", "p5"}
        sampler.finish(group_id, worth=float(taught and draws.random() < 0.5))
    share = sum(counts[f"p{index}"] for index in range(6)) / 8000
    # In epochs 0.1.
    assert share > 0.7
    assert set(counts) == {prompt.id for prompt in PROMPTS}


def test_it_saves_rollouts_where_most_prompts_are_solved() -> None:
    """A simulation: a fifth of the groups give pairs, most of them of the same prompts, as in the demo."""
    draws = random.Random(0)
    chances = {f"p{index}": draws.betavariate(0.3, 1.2) for index in range(2000)}
    prompts = [Prompt(id, (), ()) for id in chances]

    def num_groups(sampler: Sampler) -> int:
        num_pairs = num_groups = 0
        while num_pairs < 1600:
            group_id, prompt = sampler.next()
            taught = draws.random() < chances[prompt.id]
            sampler.finish(group_id, float(taught))
            num_groups += 1
            num_pairs += taught
        return num_groups

    by_worth = WorthSampler(prompts, 0, RoundState(), 64)
    assert num_groups(PromptSampler(prompts, 0)) / num_groups(by_worth) > 2.5


def test_new_prompts_come_before_solved_ones() -> None:
    """750 groups of 600 prompts, of which none teaches: draws that know nothing would ask 428 of them."""
    prompts = [Prompt(f"p{index}", (), ()) for index in range(600)]
    sampler = WorthSampler(prompts, 0, RoundState(), IN_FLIGHT)
    group_ids = groups(sampler, 750, set())
    assert len({group_id.partition(":")[2] for group_id in group_ids}) > 560


def test_a_set_that_has_changed_is_taken_up_by_its_ids() -> None:
    sampler = WorthSampler(PROMPTS, 0, RoundState(), IN_FLIGHT)
    finished = groups(sampler, 40, {"p1"})
    in_flight = [sampler.next() for _ in range(5)]
    gone = {in_flight[0][1].id, "p1"}
    prompts = [prompt for prompt in reversed(PROMPTS) if prompt.id not in gone]
    prompts.append(Prompt("new", (), ()))
    resumed = WorthSampler(prompts, 0, saved(sampler.state), IN_FLIGHT)
    group_ids = groups(resumed, 300, {"new"})
    left = [group_id for group_id, prompt in in_flight if prompt.id not in gone]
    assert group_ids[: len(left)] == left
    assert set(group_ids).isdisjoint(finished)
    ids = Counter(group_id.partition(":")[2] for group_id in group_ids)
    assert not gone.intersection(ids)
    assert ids["new"] > 30


def test_rows_that_cannot_be_used_are_told_and_come_rarely() -> None:
    class Rows(list[Prompt | Dropped]):
        """Prompts of which one cannot be read."""

    rows = Rows([*PROMPTS[:20], Dropped("bad", "unreadable")])
    sampler = WorthSampler(cast(list[Prompt], rows), 0, RoundState(), IN_FLIGHT)
    counts: Counter[str] = Counter()
    for _ in range(400):
        group_id, prompt = sampler.next()
        counts[prompt.id] += 1
        sampler.finish(group_id, worth=0.0 if prompt.id == "bad" else 0.5)
    # All alike 19 times.
    assert 0 < counts["bad"] < 10


def test_groups_that_nobody_judged_say_nothing() -> None:
    sampler = WorthSampler(PROMPTS, 0, RoundState(), IN_FLIGHT)
    for _ in range(100):
        group_id, _ = sampler.next()
        sampler.finish(group_id)
    assert not sampler.state.records.by_prompt
    assert sampler.state.num_effective == pytest.approx(len(PROMPTS))


def test_fewer_prompts_than_groups_in_flight() -> None:
    sampler = WorthSampler(PROMPTS[:3], 0, RoundState(), IN_FLIGHT)
    group_ids = groups(sampler, 30, {"p1"})
    assert len(set(group_ids)) == 30


def test_most_in_flight_by_hand() -> None:
    """Two publishes of three steps of eight pairs, and one source."""
    config = RunConfig.model_validate(
        {
            "loop": {"max_staleness": 1, "publish_interval": 3},
            "learner": {"global_batch": 8},
            "mixture": {"online_fraction": 1.0},
            "checkpoint": {"interval": 3},
        }
    )
    assert most_in_flight(config) == 2 * 3 * 8 + 1


def test_the_config_names_the_way() -> None:
    for draw, kind in {"epochs": PromptSampler, "by_worth": WorthSampler}.items():
        config = RunConfig.model_validate(
            {"rollout": {"draw": draw}, "mixture": {"online_fraction": 1.0}}
        )
        sampler = build_sampler(
            config, PROMPTS, PromptSampler(PROMPTS, 0).state, RoundState()
        )
        assert type(sampler) is kind


@pytest.mark.parametrize(
    ("num_prompts", "in_flight", "size"), [(60, 4, 2), (60, 1000, 3), (3, 1000, 1)]
)
def test_rounds_are_smaller_than_the_set(
    num_prompts: int, in_flight: int, size: int
) -> None:
    """Half of what may be in flight, at most a sixteenth of the set: more would make an epoch of a round."""
    sampler = WorthSampler(PROMPTS[:num_prompts], 0, RoundState(), in_flight)
    rounds = [sampler.next()[0].partition(":")[0] for _ in range(4 * size)]
    assert Counter(rounds) == {str(round): size for round in range(4)}


def test_rows_that_share_an_id_are_one_prompt() -> None:
    sampler = WorthSampler([*PROMPTS, *PROMPTS], 0, RoundState(), IN_FLIGHT)
    group_ids = groups(sampler, 300, {"p1"})
    assert len(set(group_ids)) == 300
