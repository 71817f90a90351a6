"""Several pictures in a prompt: the same log-probs in every layout, and every loss that touches pictures trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from common.chat import ChatEncoder
from common.config.model import Pictures
from common.data.images import ImageStore
from common.records import Dropped, Message, Part, PreferencePair, Prompt
from learner.batch.collate import Collator
from learner.batch.encoded import rows_of
from learner.forward.logps import completion_logps
from learner.forward.tree import tree_batch
from learner.forward.tree_logps import prepare, tree_logps
from learner.model.reference_cache import identity
from tests.learner.helpers import losses_of, make_pairs, run_config, started, train
from tests.tiny_families import tiny_llava_next, tiny_qwen, tiny_qwen3
from tests.tiny_models import picture, tiny_llava

SIZES = ((64, 64), (90, 40), (40, 80))


def with_pictures(pair: PreferencePair, store: ImageStore, num: int) -> PreferencePair:
    """The pair about `num` pictures of different shapes."""
    images = []
    for number in range(num):
        image = picture(number, 160).resize(SIZES[number % len(SIZES)])
        images.append(store.add(image))
    parts = (Part("image"),) * num + (Part("text", "Describe the image."),)
    prompt = Prompt(f"{pair.id}/{num}", (Message("user", parts),), tuple(images))
    return replace(pair, prompt=prompt)


@pytest.mark.parametrize("build", [tiny_llava, tiny_llava_next, tiny_qwen, tiny_qwen3])
@torch.no_grad()
def test_rows_and_the_flat_row_are_transformers_forward(
    build: Callable[[], Path], store: ImageStore
) -> None:
    """Prompts of one, two and three pictures in one batch, in float64."""
    folder = build()
    collator = Collator(ChatEncoder(folder, 512))
    pairs = []
    for number, pair in enumerate(make_pairs(store, 3), start=1):
        encoded = collator.encode(with_pictures(pair, store, number))
        assert not isinstance(encoded, Dropped), encoded
        pairs.append(encoded)
    net = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64)
    net.eval()
    alone = []
    for pair, answer in rows_of(pairs):
        row = collator.rows([(pair.prompt, answer)]).to("cpu", torch.float64)
        logits = net(input_ids=row.input_ids, **row.media).logits
        logps = logits[0, :-1].log_softmax(-1)
        picked = logps.gather(1, row.input_ids[0, 1:, None])[:, 0]
        alone.append(picked[row.response_mask[0, 1:]].sum())
    expected = torch.stack(alone)
    rows = collator.collate(pairs).to("cpu", torch.float64)
    in_rows = completion_logps(net, rows).summed
    torch.testing.assert_close(in_rows, expected, atol=1e-6, rtol=1e-6)
    prepare(net)
    in_tree = tree_logps(net, tree_batch(pairs).to("cpu", torch.float64)).summed
    torch.testing.assert_close(in_tree, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("fast", [{}, {"share_prompt": False}], ids=["tree", "rows"])
def test_a_pair_with_two_pictures_trains_with_every_loss_on_pictures(
    store: ImageStore, fast: dict[str, bool]
) -> None:
    """mDPO crops each picture, POVID noises each. At the start ratios are 0: 3 log 2 and log 2 (defaults)."""
    losses = {"bdhs": {"kind": "mdpo"}, "online": {"kind": "povid"}}
    trainer = started(run_config(source_losses=losses, fast=fast))
    pairs = [with_pictures(pair, store, 2) for pair in make_pairs(store, 6)]
    values = losses_of(train(trainer, [pairs] * 4))
    assert values[0] == pytest.approx(2 * math.log(2), abs=1e-4)
    assert values[-1] < values[0]


def test_more_pictures_than_allowed_are_refused_with_the_key(store: ImageStore) -> None:
    (pair,) = make_pairs(store, 1)
    collator = Collator(ChatEncoder(tiny_llava(), 512, pictures=Pictures(max_images=2)))
    refused = collator.encode(with_pictures(pair, store, 3))
    assert isinstance(refused, Dropped)
    assert refused.reason == "image_count"
    assert "max_images = 2" in refused.detail


def test_kept_reference_logprobs_belong_to_a_size_of_pictures() -> None:
    """A kept log-prob of large pictures must not be taken for that of small ones."""
    names = set()
    for settings in (
        Pictures(),
        Pictures(max_pixels=10_000),
        Pictures(max_pixels=20_000),
        Pictures(min_pixels=10_000),
    ):
        for folder in (tiny_qwen(), tiny_llava()):
            encoder = ChatEncoder(folder, 512, pictures=settings)
            names.add(identity(encoder, torch.float32))
    assert len(names) == 8
