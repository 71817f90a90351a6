"""Weights that come in buckets: the same promises as those that come whole, and what becomes of half a push."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.weights.streamed_push import StreamedPush
from common.data.images import ImageStore
from common.errors import UserError
from common.model_parts import is_vision_tower
from common.protocols import GenerationRequest, Tensors
from common.push.meeting import PushBroken, Unreachable
from common.push.plan import PushPlan, TensorSpec, model_digest
from common.push.wire import Named
from common.records import LoadReport, WeightManifest
from common.weights import from_arrays
from tests.actors.engines import Run
from tests.actors.hf_policy import HfPolicy
from tests.actors.in_flight import check_answers_in_flight
from tests.common.push.members import Members, named, plan_of
from tests.tiny_models import make_prompt

pytestmark = pytest.mark.real
TOLERANCE = 1e-4


class Streamed:
    """An engine whose weights come in buckets from a thread of this process."""

    def __init__(self, engine: Any, path: Path, backend: str = "gloo") -> None:
        self._engine = engine
        self._path = path
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def plan(self, tensors: Mapping[str, Tensor]) -> PushPlan:
        # Several buckets, and tensors that are cut up.
        plan = plan_of(tensors, bucket_bytes=40_000)
        return replace(plan, model=model_digest(self._path))

    async def load_weights(
        self, manifest: WeightManifest, tensors: Tensors
    ) -> LoadReport:
        weights = from_arrays(tensors)
        plan = self.plan(weights)
        await self._engine.check_push(manifest.version, plan)
        report = await self.receive(manifest.version, plan, named(plan, weights))
        result: LoadReport = await self._engine.prove(manifest, report)
        return result

    async def receive(self, version: int, plan: PushPlan, tensors: Named) -> LoadReport:
        members = Members(1, backend=self._backend)
        sending = asyncio.to_thread(members.send_from, plan, tensors)
        push = StreamedPush(version, plan, members.meeting, 1)
        sent, report = await asyncio.gather(
            sending, self._engine.receive_weights(push), return_exceptions=True
        )
        if isinstance(report, BaseException):
            raise report
        if isinstance(sent, BaseException):
            raise sent
        return report


@pytest.fixture
def hf(policy_path: Path) -> HfPolicy:
    return HfPolicy(policy_path, 256)


@pytest.fixture
def streamed(engine: Any, policy_path: Path, request: Any) -> Streamed:
    return Streamed(engine, policy_path, getattr(request, "param", "gloo"))


@torch.no_grad()
def perturb_all_that_trains(hf: HfPolicy, seed: int) -> None:
    """All but the vision tower, which a run with `model.freeze_vision` never changes."""
    tower = {}
    for name, parameter in hf.model.named_parameters():
        if is_vision_tower(name):
            tower[name] = parameter.clone()
    hf.perturb(seed)
    for name, parameter in hf.model.named_parameters():
        if name in tower:
            parameter.copy_(tower[name])


def requests_about(store: ImageStore) -> list[GenerationRequest]:
    whole = GenerationRequest("whole", make_prompt(store, 70), 1, 0.0, 10)
    return [whole, replace(whole, id="short", visible_image_tokens=(1, 8, 40))]


@pytest.mark.parametrize("streamed", ["gloo", "shm"], indirect=True)
def test_tokens_are_those_of_what_was_streamed(
    streamed: Streamed, hf: HfPolicy, store: ImageStore, run: Run
) -> None:
    requests = requests_about(store)
    prompt = make_prompt(store, 70)
    for seed in range(2):
        # Fills the caches under the weights that are about to go.
        run(streamed.generate(requests))
        version = streamed.weight_version + 1
        perturb_all_that_trains(hf, seed)
        report = run(streamed.load_weights(*hf.publish(version, prompt)))
        assert report.version == version == streamed.weight_version
        assert report.probe_error < TOLERANCE
        assert 0 < report.pause_s <= report.seconds
        whole, short = (
            group.completions[0] for group in run(streamed.generate(requests))
        )
        assert whole.token_ids == hf.greedy(prompt, 10)
        # The rollout worker's own vision side has followed.
        assert short.token_ids == hf.greedy(prompt, 10, visible=(1, 8, 40))
        assert whole.min_weight_version == whole.max_weight_version == version


def test_running_answers_go_on_under_what_was_streamed(
    streamed: Streamed, hf: HfPolicy, policy_path: Path, store: ImageStore, run: Run
) -> None:
    new = HfPolicy(policy_path, 256).perturb(7)
    check_answers_in_flight(
        streamed,  # type: ignore[arg-type]
        store,
        run,
        policies=(hf, new),
        publish=(hf.publish, new.publish),
    )


@pytest.mark.parametrize("streamed", ["gloo", "shm"], indirect=True)
def test_half_a_push_is_never_sampled_from(
    streamed: Streamed, hf: HfPolicy, store: ImageStore, run: Run
) -> None:
    """The learner dies in the middle; the engine waits, and takes the next push."""
    version = streamed.weight_version + 1
    manifest, arrays = hf.perturb(3).publish(version, make_prompt(store, 70))
    weights = from_arrays(arrays)
    plan = streamed.plan(weights)

    def half() -> Iterator[tuple[TensorSpec, Tensor]]:
        for number, item in enumerate(named(plan, weights)):
            if number == len(plan.tensors) // 2:
                raise ValueError("the learner died")
            yield item

    async def scenario() -> Any:
        with pytest.raises(PushBroken, match="the learner failed"):
            await streamed.receive(version, plan, half())
        assert streamed.weight_version == version - 1
        waiting = asyncio.create_task(streamed.generate(requests_about(store)[:1]))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        report = await streamed.load_weights(manifest, arrays)
        assert report.probe_error < TOLERANCE
        return await waiting

    (group,) = run(scenario())
    (completion,) = group.completions
    assert completion.token_ids == hf.greedy(make_prompt(store, 70), 10)
    assert completion.min_weight_version == version


def test_a_push_of_another_model_is_refused_before_it_begins(
    streamed: Streamed, hf: HfPolicy, run: Run
) -> None:
    version = streamed.weight_version
    _, arrays = hf.publish(version + 1)
    weights = from_arrays(arrays)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    without = {key: value for key, value in weights.items() if key != name}
    reshaped = {**weights, name: torch.zeros(2, 2)}
    unknown = {**weights, "extra": torch.zeros(2)}
    for tensors, words in (
        (without, f"got 1 without: {name}"),
        (reshaped, f"of another shape: {name}"),
        (unknown, "got 1 unknown: extra"),
    ):
        with pytest.raises(UserError, match=words):
            run(streamed.check_push(version + 1, streamed.plan(tensors)))
    other_config = replace(streamed.plan(weights), model="0" * 64)
    with pytest.raises(UserError, match="copy the same revision of the model"):
        run(streamed.check_push(version + 1, other_config))
    assert streamed.weight_version == version


def test_a_learner_that_is_not_there_costs_no_answers(
    streamed: Streamed, hf: HfPolicy, store: ImageStore, run: Run
) -> None:
    """The engine is paused only once the learner has something to send."""
    _, arrays = hf.publish(1)
    members = Members(1, timeout_s=1.0)
    nobody = replace(members.meeting, port=9)
    plan = streamed.plan(from_arrays(arrays))
    with pytest.raises(Unreachable, match="expected to reach the learner at"):
        run(streamed.receive_weights(StreamedPush(5, plan, nobody, 1)))
    push = StreamedPush(5, plan, members.meeting, 1)
    push.tell_broken("the learner failed: no memory")
    with pytest.raises(PushBroken, match="to send, got: the learner failed: no memory"):
        run(streamed.receive_weights(push))
    assert len(run(streamed.generate(requests_about(store)))) == 2


def test_a_worker_hears_what_is_said_to_it_during_a_push(
    streamed: Streamed, hf: HfPolicy, run: Run
) -> None:
    """Such as that another engine has died; the learner goes on here only when it was heard."""
    version = streamed.weight_version + 1
    _, arrays = hf.perturb(4).publish(version)
    weights = from_arrays(arrays)
    plan = streamed.plan(weights)
    in_the_middle = threading.Event()
    heard = threading.Event()

    def tensors() -> Named:
        for number, item in enumerate(named(plan, weights)):
            if number == len(plan.tensors) - 1:
                in_the_middle.set()
                assert heard.wait(10)
            yield item

    async def hear() -> None:
        while not in_the_middle.is_set():
            await asyncio.sleep(0.01)
        heard.set()

    async def scenario() -> LoadReport:
        hearing = asyncio.create_task(hear())
        report = await streamed.receive(version, plan, tensors())
        await hearing
        return report

    assert run(scenario()).version == version
