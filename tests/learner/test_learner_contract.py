"""What the controller relies on, kept by the real learner and by its stand-in."""

import asyncio
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config.overrides import load_config
from common.data.images import ImageStore
from common.records import PreferencePair, Response
from common.shapes.prompts import caption_prompts
from learner.learner import Learner
from tests.fakes import FakeLearner
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
    call(second, "load", str(tmp_path / "saved"))
    for learner in (first, second):
        call(learner, "step", 2, pairs[:2])
    assert (
        call(first, "publish", 2)[0].checksum == call(second, "publish", 2)[0].checksum
    )


def test_an_export_is_a_directory_with_a_config(
    make: Callable[[], Any],
    tmp_path: Path,
) -> None:
    learner = make()
    call(learner, "export", str(tmp_path / "policy"))
    wait_until_written(learner)
    assert (tmp_path / "policy" / "config.json").is_file()
