"""The state of a run goes through state.json as a whole, and runs of before can go on."""

import json
from collections import deque
from dataclasses import replace

from cluster.run.state import RunState
from cluster.sampling.prompt_sampler import PromptSampler
from cluster.sampling.replay import ReplayBuffer
from cluster.sampling.worth_sampler import RoundState
from common.records import PreferencePair, Prompt, Response

PROMPT = Prompt("p", (), (), "truth", {"objects": [1, "red"]})
PAIR = PreferencePair(
    "0:p", PROMPT, Response("yes", (5, 1)), Response("no"), "online", 2, (1,), (1.0, 0)
)


def state_of_a_run() -> RunState:
    state = RunState.fresh(num_offline=3)
    state.step = 7
    state.version = 6
    state.best_step = 4
    state.best_score = 0.1 + 0.2
    state.trained = True
    state.sampler.epoch = 1
    state.sampler.finished.update(["1:p", "1:a", "2:p"])
    state.rounds.num_rounds = 3
    state.rounds.open[2] = [-5, 7]
    state.rounds.worths[2] = {11: 0.5}
    state.rounds.records.by_prompt[-5] = (0.1 + 0.2, 1.0, 1)
    state.buffer.offline.position = 2
    state.buffer.online.append(PAIR)
    state.accepted["online"] += 5
    state.drops["tie"] += 1
    return state


def test_a_state_goes_through_json() -> None:
    state = state_of_a_run()
    restored = RunState.model_validate(json.loads(state.to_json()))
    assert restored == state
    assert isinstance(restored.buffer.online, deque)
    assert restored.drops["never seen"] == 0


def test_a_state_from_before_prompts_were_drawn_by_worth_has_no_rounds() -> None:
    content = json.loads(state_of_a_run().to_json())
    del content["rounds"]
    assert RunState.model_validate(content).rounds == RoundState()


def test_the_keys_on_disk_are_those_of_earlier_runs() -> None:
    content = json.loads(state_of_a_run().to_json())
    assert list(content) == [
        "step",
        "version",
        "weights",
        "best_step",
        "best_score",
        "trained",
        "frontier",
        "buffer",
        "rounds",
        "accepted",
        "drops",
        "evaluation",
    ]
    assert content["frontier"] == {
        "epoch": 1,
        "position": 0,
        "finished": ["1:a", "1:p", "2:p"],
        "prompts": "",
    }
    assert content["buffer"]["offline"] == {"size": 3, "epoch": 0, "position": 2}
    assert content["accepted"] == {"online": 5}


def test_a_state_from_before_trained_was_kept_counts_as_untrained() -> None:
    content = json.loads(state_of_a_run().to_json())
    del content["trained"]
    assert not RunState.model_validate(content).trained


def test_the_parts_advance_the_state_in_place() -> None:
    state = RunState.fresh(num_offline=1)
    sampler = PromptSampler([PROMPT], seed=0, state=state.sampler)
    buffer = ReplayBuffer([replace(PAIR, weight_version=None)], 0, False, state.buffer)
    group_id, _ = sampler.next()
    sampler.finish(group_id)
    buffer.add(PAIR)
    buffer.take_offline(3)
    assert state.sampler.epoch == 1
    assert list(state.buffer.online) == [PAIR]
    assert (state.buffer.offline.epoch, state.buffer.offline.position) == (2, 1)
