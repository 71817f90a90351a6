"""A judge's engines are engines like the policy's: with its own model, length and limits of pictures."""

from __future__ import annotations

from cluster.runtime.judge_engines import engine_config
from common.config import RunConfig
from common.config.eyes import engine_eyes
from common.config.overrides import load_config

WORDS = (
    "--mixture.online_fraction=1",
    "--model.max_pixels=50000",
    "--reward.judge.kind=vlm",
    "--reward.judge.path=common/shapes/policy",
    "--reward.judge.max_length=700",
    "--reward.judge.max_pixels=90000",
    "--reward.judge.mm_processor_kwargs.do_pad=true",
)


def judged(*words: str) -> RunConfig:
    return load_config(None, [*WORDS, *words])


def test_limits_of_pictures_are_the_judges() -> None:
    config = judged()
    (eye,) = engine_eyes(config.reward.judge)
    model = engine_config(config, eye).model
    assert (model.path, model.max_length) == ("common/shapes/policy", 700)
    assert model.max_pixels == 90_000
    assert model.mm_processor_kwargs == {"do_pad": True}
    assert config.model.max_pixels == 50_000


def test_eyes_with_other_limits_are_other_engines() -> None:
    (eye,) = engine_eyes(judged().reward.judge)
    (same,) = engine_eyes(judged().reward.judge)
    (other,) = engine_eyes(judged("--reward.judge.max_pixels=80000").reward.judge)
    assert len({eye, same, other}) == 2
