"""Every path that reads pixels reads them: behind a blank picture its figures change. Nothing else does change.

policy (plain rows, trees, shared vision) · reference (the same, and from the cache) · rollout (both engines: scores,
whole and shortened prompts) · judges (the policy, and those that see in each of their ways). The learner's paths start
at files on disk, as in a run.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from common import config
from common.data.image_conditions import GREY, blank_images
from common.data.images import ImageStore
from common.protocols import Judge
from common.records import PreferencePair, Prompt
from common.shapes.prompts import caption_prompts
from learner.batch.encoded import EncodedPair
from learner.forward.tree import tree_batch
from learner.forward.tree_logps import prepare
from learner.learner import Learner
from learner.model.policy import Policy
from learner.model.vision_features import VisionShare
from tests.learner.families import FAMILIES, Family, family
from tests.learner.helpers import LORA, make_pairs, run_config
from tests.learner.trees import Rows
from tests.reward.builders import group
from tests.reward.judging import scores_of
from tests.tiny_models import make_prompt, tiny_llava

LEAST = 0.01
"""Nats that a response's log-prob moves at least; rounding is below 1e-4."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


def blanked(pair: PreferencePair, store: ImageStore) -> PreferencePair:
    blind = blank_images(store)(pair)
    assert blind is not None
    return blind


def blank_prompt(prompt: Prompt, store: ImageStore) -> Prompt:
    """The prompt with a blank picture."""
    pair = PreferencePair("p", prompt, None, None, "")  # type: ignore[arg-type]
    return blanked(pair, store).prompt


def encoded(tiny: Family, image: Image.Image | None) -> EncodedPair:
    """A pair on this picture; with None on picture 1."""
    seed = 1 if image is None else 2
    pair: EncodedPair = tiny.pair(
        "a1 a2",
        seed,
        chosen=(20, 21),
        rejected=(22, 23, 24),
    )
    if image is None:
        return pair
    return replace(pair, prompt=tiny.encode("a1 a2", [image]))


@torch.no_grad()
@pytest.mark.parametrize("path", ["rows", "tree", "shared", "fused"])
@pytest.mark.parametrize("name", FAMILIES)
def test_policy_of_every_family(name: str, path: str) -> None:
    tiny = family(name)
    seeing = encoded(tiny, None)
    blind = encoded(tiny, Image.new("RGB", (128, 64), GREY))
    assert seeing.prompt.token_ids == blind.prompt.token_ids
    # A copy: `prepare` and frozen parameters would stay with the family's model.
    policy = Policy(deepcopy(tiny.model))
    collate: Callable[[list[EncodedPair]], Any] = Rows().collate
    if path != "rows":
        collate = tree_batch
        prepare(policy.model, fused_layers=path == "fused")
    if path == "shared":
        policy.vision = VisionShare(policy.model.requires_grad_(False), 1 << 20)
    logps = policy(collate([seeing])).summed
    blind_logps = policy(collate([blind])).summed
    again = policy(collate([seeing])).summed
    assert (logps - blind_logps).abs().min() > LEAST
    torch.testing.assert_close(logps, again, atol=1e-9, rtol=0)


FAST: dict[str, dict[str, Any]] = {
    "plain": {
        "share_prompt": False,
        "share_vision": False,
        "reference_cache": "off",
        "fused_logps": False,
    },
    "tree": {"share_vision": False, "reference_cache": "off"},
    "shared": {"reference_cache": "off"},
    "cached": {},
}


@torch.no_grad()
@pytest.mark.parametrize("tuning", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("path", FAST)
def test_policy_and_reference_of_the_learner(
    store: ImageStore, path: str, tuning: dict | None
) -> None:
    """From the pair's files to log-probs, by the very calls of a step; the cache must miss on a changed image."""
    learner = Learner(run_config(tuning=tuning, fast=FAST[path]))
    learner.start()
    assert not learner.fast.fallbacks or path == "plain"
    pairs = [replace(pair, weight_version=None) for pair in make_pairs(store, 3)]
    blind_pairs = [blanked(pair, store) for pair in pairs]
    policy_logps: list[torch.Tensor] = []
    reference_logps: list[torch.Tensor] = []
    for shown in (pairs, blind_pairs, pairs):
        (micro_batch,) = learner.plan(shown).micro_batches
        batch = learner.models.collate(micro_batch.pairs)
        policy_logps.append(learner.models.engine.module(batch).summed)
        reference_logps.append(learner.reference(batch).summed)
    for seeing, blind, again in (policy_logps, reference_logps):
        assert (seeing - blind).abs().min() > LEAST
        torch.testing.assert_close(seeing, again, atol=1e-4, rtol=0)
    cache = learner.reference.cache
    assert (cache is not None) == (path == "cached")
    if cache is not None:
        assert (cache.num_misses, cache.num_hits) == (6, 3)
    learner.close()


def test_judge(tmp_path: Path) -> None:
    """The policy as a judge, asked about true captions and those of other scenes."""
    from reward.judges.factory import make_judge

    store = ImageStore(tmp_path)
    judge = make_judge(config.PolicyJudge())
    prompts = caption_prompts("test", 8, 3, store)
    texts = [prompt.reference or "" for prompt in prompts]
    blind = [blank_prompt(prompt, store) for prompt in prompts]

    def scores(shown: list[Prompt]) -> list[tuple[float, ...]]:
        rows = zip(shown, texts, texts[::-1], strict=True)
        return [scores_of(judge, group(p, true, false)) for p, true, false in rows]

    assert scores(prompts) != scores(blind)


SEEING: dict[str, dict[str, Any]] = {
    "pairwise": {"template": "{{ first }} {{ second }}"},
    "pointwise": {"mode": "pointwise", "template": "{{ answer }}"},
}


@pytest.mark.parametrize("mode", [*SEEING, "claims"])
def test_judges_that_see(mode: str, tmp_path: Path) -> None:
    """A model that answers at random still answers another picture differently, to the same question."""
    from reward.eyes.torch_eye import TorchEye
    from reward.judges.claims import ClaimLanguage, ClaimsJudge
    from reward.judges.seeing import SeeingJudge
    from reward.judges.splitting import RuleSplitter, sentences

    store = ImageStore(tmp_path)
    prompts = [make_prompt(store, seed) for seed in range(6)]
    texts = ("There is a red circle.", "There is a blue star.", "A ring is at the top.")
    judge: Judge
    if mode == "claims":
        # Of scenes, since this is the model that knows them.
        prompts = caption_prompts("test", 8, 3, store)
        shapes = TorchEye(config.PolicyJudge().eye)
        language = ClaimLanguage(lambda prompt, claim: claim, "Yes", "No", "nothing")
        judge = ClaimsJudge("claims", shapes, RuleSplitter(sentences), language)
    else:
        eye = TorchEye(config.TorchEye(path=str(tiny_llava()), max_length=256))
        asking = config.VlmJudge(path="judge", reading="logprobs", **SEEING[mode])
        judge = SeeingJudge("vlm", asking, eye)

    def scores(shown: list[Prompt]) -> list[tuple[float, ...]]:
        return [scores_of(judge, group(prompt, *texts)) for prompt in shown]

    seen = scores(prompts)
    assert seen == scores(prompts)
    assert seen != scores([blank_prompt(prompt, store) for prompt in prompts])
