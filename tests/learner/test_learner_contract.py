"""What the controller relies on, kept by the real learner and by its stand-in."""

import asyncio
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.config.loop import Mixture
from common.config.overrides import load_config
from common.data.images import ImageStore
from common.push.meeting import Meeting
from common.records import PreferencePair, Response, WriteReport
from common.shapes.prompts import caption_prompts
from learner.learner import Learner
from tests.fakes.learner import FakeLearner
from tests.probes import one_answer, token_logprobs
from tests.tiny_models import tiny_llava


@pytest.fixture(params=[FakeLearner, Learner], ids=["fake", "real"])
def make(request: pytest.FixtureRequest) -> Callable[[], Any]:
    words = [
        f"--model.path={tiny_llava()}",
        "--mixture.online_fraction=1",
        "--learner.engine=torch",
    ]
    config = load_config(
        None,
        [*words, "--learner.optimizer.warmup_steps=0", "--learner.optimizer.lr=1e-3"],
    )

    def build() -> Any:
        learner = request.param(config, 0, 1)
        learner.start(*learner.rendezvous())
        return learner

    return build


@pytest.fixture
def pairs(tmp_path: Path) -> list[PreferencePair]:
    prompts = caption_prompts("train", 3, 0, ImageStore(tmp_path))
    return [
        PreferencePair(
            f"0:{p.id}",
            p,
            Response(p.reference or ""),
            Response("There is nothing."),
            "online",
            0,
        )
        for p in prompts
    ]


def call(learner: Any, method: str, *args: Any) -> Any:
    result = getattr(learner, method)(*args)
    return asyncio.run(result) if inspect.isawaitable(result) else result


def wait_until_written(learner: Any) -> None:
    while call(learner, "written") is None:
        time.sleep(0.01)


def test_a_step_names_its_pairs_and_moves_the_weights(
    make: Callable[[], Any],
    pairs: list[PreferencePair],
) -> None:
    learner = make()
    call(learner, "set_probe", one_answer(pairs[0].prompt, (20, 21)))
    before, _ = call(learner, "publish", 1)
    result, refused = call(learner, "step", 1, pairs)
    after, tensors = call(learner, "publish", 2)
    assert (result.step, set(result.pair_ids), refused) == (
        1,
        {pair.id for pair in pairs},
        [],
    )
    assert {"loss", "rewards/margins"} <= set(result.metrics)
    assert set(result.margins) == set(result.pair_ids)
    assert (before.version, after.version) == (1, 2)
    assert before.change_norm == 0 < after.change_norm
    assert before.checksum != after.checksum
    assert after.num_tensors == len(tensors)
    assert token_logprobs(before.probe) != token_logprobs(after.probe)
    assert len(token_logprobs(after.probe)) == 2


def test_a_saved_learner_goes_on_where_it_was(
    make: Callable[[], Any],
    pairs: list[PreferencePair],
    tmp_path: Path,
) -> None:
    first, second = make(), make()
    for learner in (first, second):
        call(learner, "set_probe", one_answer(pairs[0].prompt, (20,)))
    call(first, "step", 1, pairs)
    call(first, "save", str(tmp_path / "saved"))
    wait_until_written(first)
    # A line for what it could not restore.
    assert call(second, "load", str(tmp_path / "saved")) == []
    for learner in (first, second):
        call(learner, "step", 2, pairs[:2])
    assert (
        call(first, "publish", 2)[0].checksum == call(second, "publish", 2)[0].checksum
    )


def test_the_probe_has_the_log_probs_of_its_answers(
    make: Callable[[], Any],
    pairs: list[PreferencePair],
) -> None:
    learner = make()
    answers = one_answer(pairs[0].prompt, (20, 21))
    probe = call(learner, "set_probe", answers)
    assert list(probe.answers) == answers
    logprobs = token_logprobs(probe)
    assert len(logprobs) == 2
    assert max(logprobs) < 0
    # A manifest carries the same answers.
    manifest, _ = call(learner, "publish", 1)
    assert token_logprobs(manifest.probe) == pytest.approx(logprobs)


def test_what_is_to_be_written_is_known_before_and_told_after(
    make: Callable[[], Any],
    tmp_path: Path,
) -> None:
    learner = make()
    state = call(learner, "checkpoint_bytes", False)
    assert 0 < state <= call(learner, "checkpoint_bytes", True)
    call(learner, "save", str(tmp_path / "saved"))
    wait_until_written(learner)
    assert call(learner, "written") == WriteReport()


def test_other_ranks_than_0_have_nothing_to_send(pairs: list[PreferencePair]) -> None:
    """The fake alone; real ranks are processes, see `rank_worker.py` and `streams.py`."""
    second = FakeLearner(RunConfig(mixture=Mixture(online_fraction=1)), 1, 2)
    second.set_probe(one_answer(pairs[0].prompt, (20, 21)))
    assert second.publish(1) == (None, {})
    nowhere = Meeting("127.0.0.1", 1, "nobody", "gloo", 2, 60.0)
    assert asyncio.run(second.push(1, nowhere)) == (None, "")


def test_an_export_is_a_directory_with_a_config(
    make: Callable[[], Any],
    tmp_path: Path,
) -> None:
    learner = make()
    call(learner, "export", str(tmp_path / "policy"))
    wait_until_written(learner)
    assert (tmp_path / "policy" / "config.json").is_file()
