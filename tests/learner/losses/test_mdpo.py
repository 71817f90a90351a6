"""mDPO through a real model: the crop is drawn once per pair and seen by both models; gradients against the formula."""

from __future__ import annotations

import math
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
from common.config import RunConfig
from common.data.images import ImageStore, read
from common.records import PreferencePair
from learner.batch.collate import Collator, EncodedPair
from learner.batch.crops import Crop
from learner.batch.encoded import rows_of
from learner.batch.plan import MicroSize, plan_batch
from learner.forward.tree import tree_batch
from learner.forward.tree_logps import prepare
from learner.losses.objective import Objective, crop_of
from learner.losses.pair_logps import pair_logps
from learner.model.policy import Policy
from learner.update import accumulate
from tests.learner.helpers import (
    TUNINGS,
    assert_same_gradients,
    diverged_policies,
    encoded,
    gradients,
    log_softmax_of,
    losses_of,
    make_pairs,
    models_of,
    offline,
    run_config,
    started,
    train,
    without_image,
)

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
    return diverged_policies(model_path, 0.2)


def mixed(store: ImageStore) -> list[PreferencePair]:
    """Online pairs with DPO and pairs with mDPO in turn, the last of those without a picture."""
    *with_picture, last = make_pairs(store, 4)
    return [*with_picture, without_image(last)]


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()}


@pytest.mark.parametrize("size", [(640, 480), (200, 900), (333, 335)])
def test_a_crop_keeps_1_to_20_percent_anywhere(size: tuple[int, int]) -> None:
    """To a whole pixel a side; shares over 400 draws fill the range, and the places the picture."""
    full_width, full_height = size
    proportions = full_width / full_height
    shares, lefts, rights = [], [], []
    for seed in range(400):
        left, top, right, bottom = Crop(seed, 0.01, 0.2).box(size, 0)
        assert 0 <= left < right <= full_width
        assert 0 <= top < bottom <= full_height
        width = right - left
        height = bottom - top
        assert width / height == pytest.approx(proportions, rel=0.05)
        shares.append(width * height / (full_width * full_height))
        lefts.append(left)
        rights.append(right)
    assert 0.0095 < min(shares) < 0.02
    assert 0.19 < max(shares) < 0.2005
    assert np.mean(shares) == pytest.approx(0.105, abs=0.01)
    assert min(lefts) < 0.05 * full_width
    assert max(rights) > 0.95 * full_width


def test_the_crop_is_that_part_of_the_picture_at_its_old_size() -> None:
    """Red everywhere but a green quarter: a crop within that quarter is green all over."""
    picture = Image.new("RGB", (80, 40), "red")
    picture.paste("lime", (40, 20, 80, 40))
    numbers_of_colours = set()
    for seed in range(60):
        crop = Crop(seed, 0.05, 0.05)
        box = crop.box(picture.size, 0)
        seen, again = crop([picture, picture])
        assert seen.size == again.size == picture.size
        assert crop.box(picture.size, 0) == box
        assert crop.box(picture.size, 1) != box, "each image has its own draw"
        expected = colours(picture.crop(box))
        # Scaling mixes colours at the border, so only the pure ones are compared.
        assert colours(seen) & {(255, 0, 0), (0, 255, 0)} == expected
        numbers_of_colours.add(len(expected))
    assert numbers_of_colours == {1, 2}


def test_drawn_once_per_pair_from_the_runs_seed(store: ImageStore) -> None:
    pairs = make_pairs(store, 4)
    config = run_config(source_losses={"bdhs": MDPO})
    reseeded = config.run.model_copy(update={"seed": 1})
    other = config.model_copy(update={"run": reseeded})

    def crops_of(config: RunConfig) -> list[Crop | None]:
        crop = crop_of(config)
        return [crop(pair) for pair in pairs]

    crops = crops_of(config)
    assert crops_of(config) == crops
    assert [crop is None for crop in crops] == [True, False, True, False]
    # Two pairs under two seeds.
    distinct = {*crops, *crops_of(other)} - {None}
    assert len(distinct) == 4
    for crop in distinct:
        assert crop is not None
        assert (crop.low, crop.high) == (0.01, 0.2)


def test_what_the_processor_gets(cropping: Collator, store: ImageStore) -> None:
    """The crop's pixels through the model's own processor, the prompt's tokens as they were; other pairs none."""
    online, bdhs = encoded(cropping, make_pairs(store, 2))
    assert online.cropped is None
    assert bdhs.cropped is not None
    crop = cropping.crop_of(bdhs.pair)
    assert crop is not None
    (picture,) = crop([read(bdhs.pair.prompt.images[0])])
    process = cropping.encoder.processor.image_processor
    pixels = process([picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(bdhs.cropped.prompt.model_inputs["pixel_values"], pixels)
    assert not torch.equal(bdhs.prompt.model_inputs["pixel_values"], pixels)
    assert bdhs.cropped.prompt.token_ids == bdhs.prompt.token_ids
    assert bdhs.cropped.image_key != bdhs.image_key
    prompt_and_chosen = len(bdhs.prompt.token_ids) + len(bdhs.chosen)
    assert bdhs.num_tokens == 2 * prompt_and_chosen + len(bdhs.rejected)
    (in_the_next_epoch,) = encoded(cropping, [bdhs.pair])
    assert in_the_next_epoch.cropped == bdhs.cropped


@LAYOUTS
@torch.no_grad()
def test_both_models_see_the_crop(
    policies: tuple[Policy, Policy],
    cropping: Collator,
    store: ImageStore,
    tree: bool,
) -> None:
    """Rows behind crops are the plain forward of the chosen answer with the crop's pixels, for policy and reference."""
    pairs = encoded(cropping, mixed(store))
    policy, reference = policies
    rows = cropping.collate(pairs).to("cpu", torch.float64)
    whole_of_policy = policy(rows).summed
    whole_of_reference = reference(rows).summed
    if tree:
        prepare(policy.model)
        prepare(reference.model)
    batch = tree_batch(pairs) if tree else cropping.collate(pairs)
    batch = batch.to("cpu", torch.float64)
    # 4 pairs with two sides, and 2 of them behind a crop.
    assert len(rows_of(pairs)) == 10
    logps = pair_logps(policy(batch), reference(batch), pairs)
    assert logps.cropped_ratios is not None
    for place, pair in enumerate(pairs):
        cropped_ratio = logps.cropped_ratios[place].item()
        if pair.pair.source == "online" or not pair.has_media:
            whole_ratio = logps.chosen_ratios[place].item()
            assert cropped_ratio == pytest.approx(whole_ratio, abs=1e-9)
            continue
        assert pair.cropped is not None
        row = cropping.rows([(pair.cropped.prompt, pair.chosen)])
        row = row.to("cpu", torch.float64)
        of_policy = policy(row).summed
        of_reference = reference(row).summed
        expected = (of_policy - of_reference).item()
        assert cropped_ratio == pytest.approx(expected, abs=1e-8)
        # Else the crop's pixels would not be seen at all.
        assert abs(of_policy - whole_of_policy[place]).item() > 1e-3
        assert abs(of_reference - whole_of_reference[place]).item() > 1e-3


def formula(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pair: EncodedPair,
) -> Tensor:
    """mDPO of one pair, every log-prob from whole logits of a forward of its own."""

    def logp(policy: Policy, prompt: Any, completion: tuple[int, ...]) -> Tensor:
        batch = collator.rows([(prompt, completion)]).to("cpu", torch.float64)
        # The prompt's last token predicts the first of the completion.
        first_predictor = len(prompt.token_ids) - 1
        table = log_softmax_of(policy, batch)[0, first_predictor:-1]
        targets = torch.tensor(completion)[:, None]
        return table.gather(1, targets).sum()

    def ratio(prompt: Any, completion: tuple[int, ...]) -> Tensor:
        policy, reference = policies
        of_policy = logp(policy, prompt, completion)
        return of_policy - logp(reference, prompt, completion).detach()

    chosen = ratio(pair.prompt, pair.chosen)
    rejected = ratio(pair.prompt, pair.rejected)
    if pair.cropped is None:
        return -F.logsigmoid(0.1 * (chosen - rejected))
    image = chosen - ratio(pair.cropped.prompt, pair.chosen)
    text_term = -F.logsigmoid(0.5 * (chosen - rejected))
    image_term = -0.7 * F.logsigmoid(0.5 * image)
    anchor_term = -0.3 * F.logsigmoid(0.5 * chosen)
    return text_term + image_term + anchor_term


@LAYOUTS
@pytest.mark.parametrize("size", [1, 3])
def test_gradient_of_the_batch_equals_that_of_the_formula(
    policies: tuple[Policy, Policy],
    cropping: Collator,
    store: ImageStore,
    tree: bool,
    size: int,
) -> None:
    policy, reference = policies
    records = mixed(store)
    losses = [formula(policies, cropping, pair) for pair in encoded(cropping, records)]
    policy.zero_grad()
    torch.stack(losses).mean().backward()
    expected = gradients(policy)
    if tree:
        prepare(policy.model)
        prepare(reference.model)
    cropping.tree = tree
    policy.zero_grad()
    config = LearnerConfig.model_validate({"source_losses": {"bdhs": MDPO}})
    plan = plan_batch(records, cropping, MicroSize(size), 0, 1)
    objective = Objective.of(config, records)
    accumulate(models_of(policies, cropping), plan, objective)
    assert_same_gradients(gradients(policy), expected)


@TUNINGS
def test_a_learner_trains_on_it_beside_other_losses(
    store: ImageStore,
    tuning: dict | None,
) -> None:
    """At the start every ratio is 0: log 2 for DPO, (1 + 0.7 + 0.3)·log 2 for mDPO. Plain rows train the same."""
    batches = [offline(make_pairs(store, 6))] * 4

    def metrics_with(fast: dict[str, Any]) -> list[dict[str, float]]:
        config = run_config(tuning=tuning, source_losses={"bdhs": MDPO}, fast=fast)
        return train(started(config), batches)

    on_trees = metrics_with({})
    on_rows = metrics_with({"share_prompt": False})
    first, last = on_trees[0], on_trees[-1]
    assert first["loss/online"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["loss/bdhs"] == pytest.approx(2 * math.log(2), abs=1e-5)
    assert last["loss/bdhs"] < first["loss/bdhs"]
    for ours, theirs in zip(on_trees, on_rows, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-3), name


def test_the_next_epoch_runs_no_reference_forward(store: ImageStore) -> None:
    """Rows behind crops are kept on disk like the others."""
    trainer = started(run_config(loss=MDPO))
    pairs = offline(make_pairs(store, 6))
    trainer.step(0, pairs)
    cache = trainer.reference.cache
    assert cache is not None
    assert (cache.num_misses, cache.num_hits) == (6, 0)
    trainer.step(1, pairs)
    assert (cache.num_misses, cache.num_hits) == (6, 6)


def test_beside_povid(store: ImageStore) -> None:
    """Both ask for more than the pair's rows."""
    source_losses = {"bdhs": MDPO, "online": {"kind": "povid"}}
    trainer = started(run_config(source_losses=source_losses))
    losses = losses_of(train(trainer, [make_pairs(store, 6)] * 3))
    # The mean of povid's log 2 and mDPO's (1 + 0.7 + 0.3)·log 2.
    assert losses[0] == pytest.approx(1.5 * math.log(2), abs=1e-5)
    assert losses[-1] < losses[0]
