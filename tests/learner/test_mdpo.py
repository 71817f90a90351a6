"""mDPO through a real model: the crop is drawn once per pair and seen by both models; gradients against the formula."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.chat import ChatEncoder
from common.config import Learner as LearnerConfig
from common.config import Model
from common.images import ImageStore, read
from common.records import PreferencePair
from learner.batching import MicroSize, plan_batch
from learner.collate import Collator, EncodedPair
from learner.crops import Crop
from learner.encoded import rows_of
from learner.learner import Learner
from learner.objective import Objective, crop_of
from learner.pair_logps import pair_logps
from learner.policy import Policy, freeze_copy, load_policy
from learner.tree import tree_batch
from learner.tree_logps import prepare
from learner.update import accumulate
from tests.learner.helpers import LORA, make_pairs, models_of, run_config, text_prompt

MDPO = {
    "kind": "mdpo",
    "beta": 0.5,
    "image_weight": 0.7,
    "anchor_weight": 0.3,
}
LAYOUTS = pytest.mark.parametrize("tree", [True, False], ids=["tree", "rows"])


@pytest.fixture
def cropping(model_path: Path) -> Collator:
    """Crops pairs of source `bdhs`."""
    return Collator(
        ChatEncoder(model_path, 256),
        crop_of=crop_of(run_config(source_losses={"bdhs": MDPO})),
    )


@pytest.fixture
def policies(model_path: Path) -> tuple[Policy, Policy]:
    """A float64 policy, and a reference that would say something else."""
    policy = load_policy(Model(), model_path).double()
    reference = freeze_copy(policy, share_tower=True)
    torch.manual_seed(1)
    with torch.no_grad():
        policy.model.lm_head.weight.add_(
            torch.randn_like(policy.model.lm_head.weight) * 0.2
        )
    return policy, reference


def encoded(collator: Collator, pairs: list[PreferencePair]) -> list[EncodedPair]:
    found = [collator.encode(pair) for pair in pairs]
    return [pair for pair in found if isinstance(pair, EncodedPair)]


def mixed(store: ImageStore) -> list[PreferencePair]:
    """Online pairs with DPO and pairs with mDPO in turn, the last of those without a picture."""
    pairs = make_pairs(store, 4)
    return [*pairs[:3], replace(pairs[3], prompt=text_prompt())]


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()}


@pytest.mark.parametrize("size", [(640, 480), (200, 900), (333, 335)])
def test_a_crop_keeps_1_to_20_percent_anywhere(size: tuple[int, int]) -> None:
    """To a whole pixel a side; shares over 400 draws fill the range, and the places the picture."""
    boxes = [Crop(seed, 0.01, 0.2).box(size, 0) for seed in range(400)]
    shares = []
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        width, height = right - left, bottom - top
        assert abs(width / height - size[0] / size[1]) < 0.05 * size[0] / size[1]
        shares.append(width * height / (size[0] * size[1]))
    assert 0.0095 < min(shares) < 0.02
    assert 0.19 < max(shares) < 0.2005
    assert sum(shares) / len(shares) == pytest.approx(0.105, abs=0.01)
    assert min(box[0] for box in boxes) < 0.05 * size[0]
    assert max(box[2] for box in boxes) > 0.95 * size[0]


def test_the_crop_is_that_part_of_the_picture_at_its_old_size() -> None:
    """Red everywhere but a green quarter: a crop within that quarter is green all over."""
    picture = Image.new("RGB", (80, 40), "red")
    picture.paste("lime", (40, 20, 80, 40))
    found = set()
    for seed in range(60):
        crop = Crop(seed, 0.05, 0.05)
        box, (seen, again) = crop.box(picture.size, 0), crop([picture, picture])
        assert seen.size == again.size == picture.size
        assert crop.box(picture.size, 0) == box != crop.box(picture.size, 1), (
            "each image has its own draw"
        )
        expected = colours(picture.crop(box))
        assert colours(seen) & {(255, 0, 0), (0, 255, 0)} == expected
        found.add(len(expected))
    assert found == {1, 2}


def test_drawn_once_per_pair_from_the_runs_seed(store: ImageStore) -> None:
    pairs = make_pairs(store, 4)
    config = run_config(source_losses={"bdhs": MDPO})
    other = config.model_copy(update={"run": config.run.model_copy(update={"seed": 1})})
    ours, again, theirs = (
        [crop_of(each)(pair) for pair in pairs] for each in (config, config, other)
    )
    assert ours == again
    assert [crop is None for crop in ours] == [True, False, True, False]
    crops = {*ours, *theirs} - {None}
    assert len(crops) == 4
    assert {(crop.low, crop.high) for crop in crops if crop} == {(0.01, 0.2)}


def test_what_the_processor_gets(cropping: Collator, store: ImageStore) -> None:
    """The crop's pixels through the model's own processor, the prompt's tokens as they were; other pairs none."""
    online, bdhs = encoded(cropping, make_pairs(store, 2))
    assert online.cropped is None
    assert bdhs.cropped is not None
    crop = cropping.crop_of(bdhs.pair)
    assert crop is not None
    (picture,) = crop([read(bdhs.pair.prompt.images[0])])
    pixels = cropping.encoder.processor.image_processor([picture], return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.equal(bdhs.cropped.prompt.model_inputs["pixel_values"], pixels)
    assert not torch.equal(bdhs.prompt.model_inputs["pixel_values"], pixels)
    assert bdhs.cropped.prompt.token_ids == bdhs.prompt.token_ids
    assert bdhs.cropped.image_key != bdhs.image_key
    assert bdhs.num_tokens == 2 * len(bdhs.prompt.token_ids) + 2 * len(
        bdhs.chosen
    ) + len(bdhs.rejected)
    assert encoded(cropping, [bdhs.pair])[0].cropped == bdhs.cropped, (
        "again in the next epoch"
    )


@LAYOUTS
@torch.no_grad()
def test_both_models_see_the_crop(
    policies: tuple[Policy, Policy], cropping: Collator, store: ImageStore, tree: bool
) -> None:
    """Rows behind crops are the plain forward of the chosen answer with the crop's pixels, for policy and reference."""
    pairs = encoded(cropping, mixed(store))
    policy, reference = policies
    plain = [
        policy(cropping.collate(pairs).to("cpu", torch.float64)) for policy in policies
    ]
    if tree:
        for each in policies:
            prepare(each.model)
    batch = (tree_batch(pairs) if tree else cropping.collate(pairs)).to(
        "cpu", torch.float64
    )
    assert len(rows_of(pairs)) == 10
    found = pair_logps(policy(batch), reference(batch), pairs)
    assert found.cropped_ratios is not None
    for place, pair in enumerate(pairs):
        if pair.pair.source == "online" or not pair.has_media:
            assert found.cropped_ratios[place].item() == pytest.approx(
                found.chosen_ratios[place].item(), abs=1e-9
            )
            continue
        assert pair.cropped is not None
        row = cropping.rows([(pair.cropped.prompt, pair.chosen)]).to(
            "cpu", torch.float64
        )
        mine, others = (model(row).summed.item() for model in policies)
        for seen, logps in ((mine, plain[0]), (others, plain[1])):
            assert abs(seen - logps.summed[place].item()) > 1e-3, (
                "the crop changes nothing: its pixels are not seen"
            )
        assert found.cropped_ratios[place].item() == pytest.approx(
            mine - others, abs=1e-8
        )


def formula(
    policies: tuple[Policy, Policy], collator: Collator, pair: EncodedPair
) -> Tensor:
    """mDPO of one pair, every log-prob from whole logits of a forward of its own."""

    def ratio(prompt: Any, completion: tuple[int, ...]) -> Tensor:
        batch = collator.rows([(prompt, completion)]).to("cpu", torch.float64)
        start = len(prompt.token_ids)
        wanted = torch.tensor(completion)[:, None]
        own, other = (
            policy.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                **batch.media,
            )
            .logits[0, start - 1 : -1]
            .log_softmax(-1)
            .gather(1, wanted)
            .sum()
            for policy in policies
        )
        return own - other.detach()

    chosen, rejected = (
        ratio(pair.prompt, pair.chosen),
        ratio(pair.prompt, pair.rejected),
    )
    if pair.cropped is None:
        return -F.logsigmoid(0.1 * (chosen - rejected))
    image = chosen - ratio(pair.cropped.prompt, pair.chosen)
    terms = ((1.0, chosen - rejected), (0.7, image), (0.3, chosen))
    return torch.stack(
        [-weight * F.logsigmoid(0.5 * margin) for weight, margin in terms]
    ).sum()


@LAYOUTS
@pytest.mark.parametrize("size", [1, 3])
def test_gradient_of_the_batch_equals_that_of_the_formula(
    policies: tuple[Policy, Policy],
    cropping: Collator,
    store: ImageStore,
    tree: bool,
    size: int,
) -> None:
    policy, _ = policies
    records = mixed(store)
    losses = [formula(policies, cropping, pair) for pair in encoded(cropping, records)]
    policy.zero_grad()
    torch.stack(losses).mean().backward()
    expected = {
        name: p.grad.clone()
        for name, p in policy.named_parameters()
        if p.grad is not None
    }
    for each in policies if tree else ():
        prepare(each.model)
    cropping.tree = tree
    policy.zero_grad()
    objective = Objective.of(
        LearnerConfig.model_validate({"source_losses": {"bdhs": MDPO}}), records
    )
    plan = plan_batch(records, cropping, MicroSize(size), 0, 1)
    accumulate(models_of(policies, cropping), plan, objective)
    found = {
        name: p.grad for name, p in policy.named_parameters() if p.grad is not None
    }
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm() + 1e-9, name


@pytest.mark.parametrize("tuning", [None, LORA], ids=["full", "lora"])
def test_a_learner_trains_on_it_beside_other_losses(
    store: ImageStore, tuning: dict | None
) -> None:
    """At the start every ratio is 0: log 2 for DPO, (1 + 0.7 + 0.3)·log 2 for mDPO. Plain rows train the same."""
    pairs = [replace(pair, weight_version=None) for pair in make_pairs(store, 6)]
    results = []
    for fast in ({}, {"share_prompt": False}):
        trainer = Learner(
            run_config(tuning=tuning, source_losses={"bdhs": MDPO}, fast=fast)
        )
        trainer.start()
        results.append([trainer.step(step, pairs)[0].metrics for step in range(4)])
    first, last = results[0][0], results[0][-1]
    assert first["loss/online"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["loss/bdhs"] == pytest.approx(2 * math.log(2), abs=1e-5)
    assert last["loss/bdhs"] < first["loss/bdhs"]
    for ours, theirs in zip(*results, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-3), name


def test_the_next_epoch_runs_no_reference_forward(store: ImageStore) -> None:
    """Rows behind crops are kept on disk like the others."""
    trainer = Learner(run_config(loss=MDPO))
    trainer.start()
    pairs = [replace(pair, weight_version=None) for pair in make_pairs(store, 6)]
    trainer.step(0, pairs)
    cache = trainer.reference.cache
    assert cache is not None
    assert (cache.num_misses, cache.num_hits) == (6, 0)
    trainer.step(1, pairs)
    assert (cache.num_misses, cache.num_hits) == (6, 6)


def test_beside_povid(store: ImageStore) -> None:
    """Both ask for more than the pair's rows."""
    trainer = Learner(
        run_config(source_losses={"bdhs": MDPO, "online": {"kind": "povid"}})
    )
    trainer.start()
    losses = [
        trainer.step(step, make_pairs(store, 6))[0].metrics["loss"] for step in range(3)
    ]
    assert losses[0] == pytest.approx(1.5 * math.log(2), abs=1e-5)
    assert losses[-1] < losses[0]
