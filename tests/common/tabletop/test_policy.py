"""The shipped policy of world 2: it loads, its sight knows the truth, and it leans on the usual all the same."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from common.tabletop.model import build_tokenizer
from common.tabletop.probe import POLICY, sayings, sight
from common.tabletop.scenes import TRAIN_BIAS

pytestmark = pytest.mark.skipif(
    not POLICY.exists(), reason="the policy is not shipped yet, see docs/world2.md"
)


@cache
def load() -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(POLICY)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(POLICY)
    return model, tokenizer


def test_the_checkpoint_is_small() -> None:
    model, _ = load()
    assert sum(parameter.numel() for parameter in model.parameters()) < 3e6


def test_tokenizer_training_is_reproducible() -> None:
    _, tokenizer = load()
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_sight_knows_what_the_policy_makes_up() -> None:
    """The probe sees an absent partner at most a third as often as the policy names one (docs/world2.md)."""
    model, tokenizer = load()
    seen = sight(model, train=600, test=200)
    said = sayings(model, tokenizer, 100)
    assert seen["kind"] > 0.85
    assert seen["absent_partners"] <= said["absent_partners"] / 3


@pytest.mark.slow
def test_it_is_better_where_the_usual_holds() -> None:
    model, tokenizer = load()
    usual = sayings(model, tokenizer, 100, TRAIN_BIAS)
    unusual = sayings(model, tokenizer, 100)
    assert 0.8 < unusual["recall"] < 0.98
    assert usual["chair_i"] < unusual["chair_i"] / 2
    assert unusual["colour"] > 0.03
    assert unusual["place"] > 0.03
