"""The clients name methods as strings: each is one of the worker, and of the fake that stands in for it."""

from __future__ import annotations

import inspect
import re

import pytest

from actors.rollout import RolloutWorker
from cluster.runtime.clients import LearnerClient, RewardClient, RolloutClient
from learner.learner import Learner
from reward.worker import RewardWorker
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker

ASKED = re.compile(r'\((?:rank_0, )?"(\w+)"')


@pytest.mark.parametrize(
    ("client", "worker"),
    [
        (RolloutClient, RolloutWorker),
        (RolloutClient, FakeRolloutWorker),
        (RewardClient, RewardWorker),
        (LearnerClient, Learner),
        (LearnerClient, FakeLearner),
    ],
)
def test_every_method_that_a_client_asks_for_is_there(
    client: type, worker: type
) -> None:
    asked = set(ASKED.findall(inspect.getsource(client)))
    assert len(asked) >= 4
    missing = [method for method in asked if not hasattr(worker, method)]
    assert missing == []
