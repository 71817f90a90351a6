"""POVID's second stage: values by hand, tokens and gradients against whole logits, noise that can be told again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import Learner as LearnerConfig
from common.config.losses import Loss, Povid
from common.data.images import ImageStore
from learner.batch.collate import Collator, EncodedPair, RowBatch
from learner.batch.plan import MicroSize, plan_batch
from learner.forward.logps import completion_logps
from learner.losses import pair_losses
from learner.losses.noised_image import (
    NoisedImages,
    NoisedImageTokens,
    clamp_pixels,
    pixel_range,
)
from learner.losses.objective import Objective
from learner.losses.pair_logps import PairLogps
from learner.model.policy import Policy
from learner.update import accumulate
from tests.learner.helpers import (
    LORA,
    diverged_policies,
    encoded,
    gradients,
    log_softmax_of,
    make_pairs,
    models_of,
    run_config,
    started,
    train,
    without_image,
)

POVID = Povid()
UNSHARED = Povid(shared_tokens=False)


def logps(*values: float, noise: tuple[float, float]) -> PairLogps:
    """Policy and reference of chosen, rejected; policy and reference of the noised image's tokens."""
    sides = [torch.tensor([value], dtype=torch.float64) for value in values]
    noises = [torch.tensor([value], dtype=torch.float64) for value in noise]
    lengths = torch.tensor([2])
    return PairLogps(*sides, lengths, lengths, *noises)


def test_the_loss_by_hand() -> None:
    """β = 0.5, ratios +2, -2 and -1: ½ log(1 + e^-1.5) + ½ log(1 + e^-2) = ½·0.201413 + ½·0.126928 = 0.164171."""
    example = logps(-3, -8, -5, -6, noise=(-4, -3))
    loss = pair_losses(example, Povid(beta=0.5))
    assert loss.item() == pytest.approx(0.164171, abs=1e-6)


def test_policy_equal_to_reference_gives_log_2() -> None:
    same = logps(-3, -8, -3, -8, noise=(-4, -4))
    loss = pair_losses(same, POVID)
    assert loss.item() == pytest.approx(math.log(2))


def test_gradients_of_the_loss() -> None:
    torch.manual_seed(0)
    # Chosen, rejected and noise of 5 pairs.
    policy = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    ref_chosen, ref_rejected, ref_noise = torch.randn(3, 5, dtype=torch.float64)
    lengths = torch.arange(1, 6)

    def loss(policy_logps: Tensor) -> Tensor:
        chosen, rejected, noise = policy_logps
        pairs = PairLogps(
            policy_chosen=chosen,
            policy_rejected=rejected,
            ref_chosen=ref_chosen,
            ref_rejected=ref_rejected,
            chosen_lengths=lengths,
            rejected_lengths=lengths,
            policy_noise=noise,
            ref_noise=ref_noise,
        )
        return pair_losses(pairs, Povid(beta=0.3))

    assert torch.autograd.gradcheck(loss, policy)


@pytest.fixture(scope="module")
def policies(model_path: Path) -> tuple[Policy, Policy]:
    """A float64 policy, and a reference that would say something else."""
    return diverged_policies(model_path, 0.2)


@pytest.fixture
def pairs(collator: Collator, store: ImageStore) -> list[EncodedPair]:
    records = [replace(pair, source="povid") for pair in make_pairs(store, 3)]
    return encoded(collator, records)


def whole_logits(policy: Policy, batch: RowBatch) -> Tensor:
    """Log-softmax by Hugging Face's own forward at every position but the last; entry i predicts token i + 1."""
    return log_softmax_of(policy, batch)[:, :-1]


def spoken(table: Tensor, batch: RowBatch, row: int) -> Tensor:
    """The positions of a row's response, [tokens, vocabulary]."""
    is_response = batch.response_mask[row, 1:]
    return table[row][is_response]


def noised_images_of(
    config: Loss,
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[EncodedPair],
    seed: int = 7,
) -> NoisedImages:
    """What finds the noised image's tokens for a batch of these pairs."""
    records = [pair.pair for pair in pairs]
    objective = Objective.of(LearnerConfig(loss=config), records)
    return NoisedImages(models_of(policies, collator), objective, seed)


def tokens_of(
    config: Loss,
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[EncodedPair],
) -> tuple[RowBatch, NoisedImageTokens]:
    """The pairs' batch, and the tokens of their noised images."""
    batch = collator.collate(pairs).to("cpu", torch.float64)
    noised_images = noised_images_of(config, policies, collator, pairs)
    return batch, noised_images.tokens(pairs, batch)


@torch.no_grad()
def test_other_tokens_and_best_tokens_of_the_same_forward(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[EncodedPair],
) -> None:
    model = policies[0].model
    batch = collator.collate(pairs).to("cpu", torch.float64)
    plain = completion_logps(model, batch)
    assert plain.alternatives is None is plain.best
    others = torch.randint(5, 20, plain.mask.shape)
    logps = completion_logps(model, batch, others, best=True)
    table = whole_logits(policies[0], batch)
    torch.testing.assert_close(logps.token_logps, plain.token_logps)
    for row, length in enumerate(plain.num_tokens.tolist()):
        expected = spoken(table, batch, row)
        of_others = expected.gather(1, others[row, :length, None])[:, 0]
        torch.testing.assert_close(
            logps.alternatives[row, :length], of_others, atol=1e-9, rtol=1e-7
        )
        assert logps.best[row, :length].tolist() == expected.argmax(1).tolist()
        assert not logps.alternatives[row, length:].any()
        assert not logps.best[row, length:].any()


@torch.no_grad()
@pytest.mark.parametrize("config", [POVID, UNSHARED], ids=["shared", "as published"])
def test_tokens_of_the_noised_image(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[EncodedPair],
    config: Povid,
) -> None:
    """The policy's arg-max of the chosen sequence under the noised image; the reference's own only as published."""
    batch, tokens = tokens_of(config, policies, collator, pairs)
    noised_images = noised_images_of(config, policies, collator, pairs)
    noised_pairs = [noised_images.noised(pair, 500) for pair in pairs]
    noised = collator.collate_chosen(noised_pairs).to("cpu", torch.float64)
    clean = collator.collate_chosen(pairs).to("cpu", torch.float64)
    policy_table = whole_logits(policies[0], noised)
    reference_table = whole_logits(policies[1], noised)
    clean_table = whole_logits(policies[0], clean)
    differs_from_clean = 0
    for row, pair in enumerate(pairs):
        length = len(pair.chosen)
        of_policy = spoken(policy_table, noised, row).argmax(1)
        of_reference = spoken(reference_table, noised, row).argmax(1)
        expected = of_policy if config.shared_tokens else of_reference
        assert tokens.policy[row, :length].tolist() == of_policy.tolist()
        assert tokens.reference[row, :length].tolist() == expected.tolist()
        of_clean = spoken(clean_table, clean, row).argmax(1)
        differs_from_clean += int((of_clean != of_policy).sum())
    assert torch.equal(tokens.policy, tokens.reference) == config.shared_tokens
    assert differs_from_clean > 0, (
        "the noise changes nothing: the test sees no difference"
    )
    assert tokens.policy.shape == (6, int(batch.response_mask.sum(1).max()))
    assert not tokens.policy[3:].any()
    assert policies[0].training


@pytest.mark.parametrize("config", [POVID, UNSHARED], ids=["shared", "as published"])
@pytest.mark.parametrize("size", [1, 3])
def test_gradient_of_the_batch_equals_that_of_the_formula(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[EncodedPair],
    config: Povid,
    size: int,
) -> None:
    policy, _ = policies
    records = [pair.pair for pair in pairs]
    policy.zero_grad()
    accumulate(
        models_of(policies, collator),
        plan_batch(records, collator, MicroSize(size), 0, 1),
        Objective.of(LearnerConfig(loss=config), records),
        noised_images_of(config, policies, collator, pairs),
    )
    accumulated = gradients(policy)
    policy.zero_grad()
    formula(config, policies, collator, pairs).backward()
    torch.testing.assert_close(accumulated, gradients(policy), atol=1e-10, rtol=1e-7)


def formula(
    config: Povid,
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[EncodedPair],
) -> Tensor:
    """-½ log σ(β (r+ - r_n)) - ½ log σ(β (r+ - r-)) with β = 0.1 from whole logits, the mean over the pairs."""
    policy, reference = policies
    batch, tokens = tokens_of(config, policies, collator, pairs)
    policy_table = whole_logits(policy, batch)
    with torch.no_grad():
        reference_table = whole_logits(reference, batch)

    def logp(table: Tensor, row: int, completion: Tensor) -> Tensor:
        of_response = spoken(table, batch, row)
        return of_response.gather(1, completion[:, None]).sum()

    def ratio(row: int, completion: Tensor) -> Tensor:
        of_policy = logp(policy_table, row, completion)
        return of_policy - logp(reference_table, row, completion)

    losses = []
    for row, pair in enumerate(pairs):
        length = len(pair.chosen)
        chosen = ratio(row, torch.tensor(pair.chosen))
        rejected = ratio(row + len(pairs), torch.tensor(pair.rejected))
        # As published, the reference has tokens of its own here.
        of_policy = logp(policy_table, row, tokens.policy[row, :length])
        of_reference = logp(reference_table, row, tokens.reference[row, :length])
        noise = of_policy - of_reference
        against_noise = F.logsigmoid(0.1 * (chosen - noise))
        against_text = F.logsigmoid(0.1 * (chosen - rejected))
        losses.append(-0.5 * against_noise - 0.5 * against_text)
    return torch.stack(losses).mean()


def test_noise_is_told_by_seed_and_pair_and_stays_in_range(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[EncodedPair],
) -> None:
    pixels = []
    for seed in (7, 7, 8):
        noised_images = noised_images_of(POVID, policies, collator, pairs, seed)
        noised = noised_images.noised(pairs[0], 500)
        pixels.append(noised.prompt.model_inputs["pixel_values"])
    assert torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[0], pixels[2])
    clean = pairs[0].prompt.model_inputs["pixel_values"]
    assert pixels[0].shape == clean.shape
    assert not torch.equal(pixels[0], clean)
    processor = collator.encoder.processor.image_processor
    low, high = pixel_range(processor)
    for channel in range(3):
        assert low[channel] - 1e-6 <= pixels[0][:, channel].min()
        assert pixels[0][:, channel].max() <= high[channel] + 1e-6
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    torch.testing.assert_close((torch.zeros(3) - mean) / std, low)
    torch.testing.assert_close((torch.ones(3) - mean) / std, high)
    assert torch.equal(pairs[0].prompt.model_inputs["pixel_values"], clean), (
        "the cache's pixels stay clean"
    )


def test_flat_patches_are_clamped_by_channel() -> None:
    """Qwen's layout: 2 patches of 3 channels with 4 values each."""
    low = torch.tensor([-1.0, -2.0, -3.0])
    high = torch.tensor([1.0, 2.0, 3.0])
    clamped = clamp_pixels(torch.full((2, 12), 9.0), low, high)
    patch = [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert clamped.tolist() == [patch, patch]


def test_a_prompt_without_an_image_is_its_own_noised_one(
    policies: tuple[Policy, Policy],
    collator: Collator,
    store: ImageStore,
) -> None:
    (record,) = make_pairs(store, 1)
    (pair,) = encoded(collator, [without_image(record)])
    noised_images = noised_images_of(POVID, policies, collator, [pair])
    assert noised_images.noised(pair, 500) is pair


@pytest.mark.parametrize(
    "tuning", [None, {**LORA, "dropout": 0.2}], ids=["full", "lora"]
)
@pytest.mark.parametrize("shared", [True, False])
def test_a_learner_trains_on_it_beside_other_losses(
    store: ImageStore,
    tuning: dict | None,
    shared: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []
    make: Callable[..., None] = NoisedImages.__init__

    def noting_the_seed(self: NoisedImages, *args: Any) -> None:
        seeds.append(args[2])
        make(self, *args)

    monkeypatch.setattr(NoisedImages, "__init__", noting_the_seed)
    povid = {"bdhs": {"kind": "povid", "shared_tokens": shared}}
    trainer = started(run_config(tuning=tuning, source_losses=povid))
    pairs = make_pairs(store, 6)
    metrics = train(trainer, [pairs] * 5)
    first, last = metrics[0], metrics[-1]
    if tuning is None:
        # LoRA's dropout lets policy and reference differ from the start.
        assert first["loss/bdhs"] == pytest.approx(math.log(2), abs=1e-5)
        assert first["loss/online"] == first["loss/bdhs"]
    assert last["loss/bdhs"] < first["loss/bdhs"]
    assert last["loss/online"] < first["loss/online"]
    assert len(set(seeds)) == 5, "every step draws its own noise"
    trainer.step(5, [pair for pair in pairs if pair.source == "online"])
    assert len(seeds) == 5, "no noised forward without a povid pair"
