"""POVID's second stage: values by hand, tokens and gradients against whole logits, noise that can be told again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import Learner as LearnerConfig
from common.config import Loss
from common.images import ImageStore
from learner.batching import MicroSize, plan_batch
from learner.collate import Collator, EncodedPair, RowBatch
from learner.learner import Learner
from learner.logps import completion_logps
from learner.losses import pair_losses
from learner.objective import Objective
from learner.pair_logps import PairLogps
from learner.policy import Policy
from learner.povid import Dispreferred, Povid, clamp_pixels, pixel_range
from learner.update import accumulate
from tests.learner.helpers import (
    LORA,
    diverged_policies,
    make_pairs,
    run_config,
    text_prompt,
)

POVID = Loss(kind="povid")
UNSHARED = Loss(kind="povid", povid_shared_indices=False)


def logps(*values: float, noise: tuple[float, float]) -> PairLogps:
    """Policy and reference of chosen, rejected; policy and reference of the noised image's tokens."""
    chosen, rejected, ref_chosen, ref_rejected, *both = (
        torch.tensor([v], dtype=torch.float64) for v in values + noise
    )
    lengths = torch.tensor([2])
    return PairLogps(
        chosen, rejected, ref_chosen, ref_rejected, lengths, lengths, *both
    )


def test_the_loss_by_hand() -> None:
    """β = 0.5, ratios +2, -2 and -1: ½ log(1 + e^-1.5) + ½ log(1 + e^-2) = ½·0.201413 + ½·0.126928 = 0.164171."""
    found = pair_losses(
        logps(-3, -8, -5, -6, noise=(-4, -3)), Loss(kind="povid", beta=0.5)
    )
    assert found.item() == pytest.approx(0.164171, abs=1e-6)


def test_policy_equal_to_reference_gives_log_2() -> None:
    assert pair_losses(
        logps(-3, -8, -3, -8, noise=(-4, -4)), POVID
    ).item() == pytest.approx(math.log(2))


def test_gradients_of_the_loss() -> None:
    torch.manual_seed(0)
    policy = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    reference = [torch.randn(5, dtype=torch.float64) for _ in range(3)]
    lengths = torch.arange(1, 6)

    def loss(chosen: Tensor, rejected: Tensor, noise: Tensor) -> Tensor:
        pairs = PairLogps(
            chosen,
            rejected,
            reference[0],
            reference[1],
            lengths,
            lengths,
            noise,
            reference[2],
        )
        return pair_losses(pairs, Loss(kind="povid", beta=0.3))

    assert torch.autograd.gradcheck(loss, policy)


@pytest.fixture(scope="module")
def policies(model_path: Path) -> tuple[Policy, Policy]:
    """A float64 policy, and a reference that would say something else."""
    return diverged_policies(model_path, 0.2)


@pytest.fixture
def pairs(collator: Collator, store: ImageStore) -> list[EncodedPair]:
    found = [
        collator.encode(replace(pair, source="povid")) for pair in make_pairs(store, 3)
    ]
    return [pair for pair in found if isinstance(pair, EncodedPair)]


def whole_logits(policy: Policy, batch: RowBatch) -> Tensor:
    """Log-softmax at every position by Hugging Face's own forward; entry i predicts token i + 1."""
    logits = policy.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, **batch.media
    ).logits
    return logits[:, :-1].log_softmax(-1)


def spoken(table: Tensor, batch: RowBatch, row: int) -> Tensor:
    """The positions of a row's response, [tokens, vocabulary]."""
    return table[row][batch.response_mask[row, 1:]]


def find(
    config: Loss,
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[EncodedPair],
    seed: int = 7,
) -> tuple[RowBatch, Dispreferred]:
    batch = collator.collate(pairs).to("cpu", torch.float64)
    objective = Objective.of(LearnerConfig(loss=config), [pair.pair for pair in pairs])
    povid = Povid(collator.encoder, [config], seed)
    return batch, povid.dispreferred(pairs, batch, collator, objective, *policies)


@torch.no_grad()
def test_other_tokens_and_best_tokens_of_the_same_forward(
    policies: tuple[Policy, Policy], collator: Collator, pairs: list[EncodedPair]
) -> None:
    model = policies[0].model
    batch = collator.collate(pairs).to("cpu", torch.float64)
    plain = completion_logps(model, batch)
    assert plain.alternatives is None is plain.best
    others = torch.randint(5, 20, plain.mask.shape)
    found, table = (
        completion_logps(model, batch, others, best=True),
        whole_logits(policies[0], batch),
    )
    torch.testing.assert_close(found.token_logps, plain.token_logps)
    for row, length in enumerate(plain.num_tokens.tolist()):
        expected = spoken(table, batch, row)
        torch.testing.assert_close(
            found.alternatives[row, :length],
            expected.gather(1, others[row, :length, None])[:, 0],
            atol=1e-9,
            rtol=1e-7,
        )
        assert found.best[row, :length].tolist() == expected.argmax(1).tolist()
        assert (
            not found.alternatives[row, length:].any()
            and not found.best[row, length:].any()
        )


@torch.no_grad()
@pytest.mark.parametrize("config", [POVID, UNSHARED], ids=["shared", "as published"])
def test_dispreferred_tokens(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[EncodedPair],
    config: Loss,
) -> None:
    """The policy's arg-max of the chosen sequence under the noised image; the reference's own only as published."""
    batch, found = find(config, policies, collator, pairs)
    povid = Povid(collator.encoder, [config], 7)
    noised = collator.collate_chosen([povid.noised(pair, 500) for pair in pairs]).to(
        "cpu", torch.float64
    )
    clean = collator.collate_chosen(pairs).to("cpu", torch.float64)
    tables = [whole_logits(policy, noised) for policy in policies]
    differs_from_clean = 0
    for row, pair in enumerate(pairs):
        length = len(pair.chosen)
        mine, others = (spoken(table, noised, row).argmax(1) for table in tables)
        assert found.policy[row, :length].tolist() == mine.tolist()
        assert (
            found.reference[row, :length].tolist()
            == (mine if config.povid_shared_indices else others).tolist()
        )
        differs_from_clean += int(
            (
                spoken(whole_logits(policies[0], clean), clean, row).argmax(1) != mine
            ).sum()
        )
    assert torch.equal(found.policy, found.reference) == config.povid_shared_indices
    assert differs_from_clean > 0, (
        "the noise changes nothing: the test sees no difference"
    )
    assert found.policy.shape == (6, int(batch.response_mask.sum(1).max()))
    assert not found.policy[3:].any()
    assert policies[0].training


@pytest.mark.parametrize("config", [POVID, UNSHARED], ids=["shared", "as published"])
@pytest.mark.parametrize("size", [1, 3])
def test_gradient_of_the_batch_equals_that_of_the_formula(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[EncodedPair],
    config: Loss,
    size: int,
) -> None:
    policy, reference = policies
    records = [pair.pair for pair in pairs]
    engine = SimpleNamespace(
        rank=0, world_size=1, module=policy, backward=lambda loss: loss.backward()
    )
    objective = Objective.of(LearnerConfig(loss=config), records)
    policy.zero_grad()
    accumulate(
        engine,
        reference,
        collator,
        plan_batch(records, collator, MicroSize(size), 0, 1),
        objective,
        torch.device("cpu"),
        torch.float64,
        Povid(collator.encoder, [config], 7),
    )
    found = [
        parameter.grad.clone()
        for parameter in policy.parameters()
        if parameter.grad is not None
    ]
    batch, tokens = find(config, policies, collator, pairs)
    table = whole_logits(policy, batch)
    with torch.no_grad():
        reference_table = whole_logits(reference, batch)

    def summed(some: Tensor, row: int, wanted: Tensor) -> Tensor:
        return spoken(some, batch, row).gather(1, wanted[:, None]).sum()

    losses = []
    for row, pair in enumerate(pairs):
        chosen, rejected = torch.tensor(pair.chosen), torch.tensor(pair.rejected)
        mine, others = (
            each[row, : len(chosen)] for each in (tokens.policy, tokens.reference)
        )
        ratio = summed(table, row, chosen) - summed(reference_table, row, chosen)
        text = summed(table, row + 3, rejected) - summed(
            reference_table, row + 3, rejected
        )
        noise = summed(table, row, mine) - summed(reference_table, row, others)
        losses.append(
            -0.5 * F.logsigmoid(0.1 * (ratio - noise))
            - 0.5 * F.logsigmoid(0.1 * (ratio - text))
        )
    policy.zero_grad()
    torch.stack(losses).mean().backward()
    expected = [
        parameter.grad.clone()
        for parameter in policy.parameters()
        if parameter.grad is not None
    ]
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-7)


def test_noise_is_told_by_seed_and_pair_and_stays_in_range(
    collator: Collator, pairs: list[EncodedPair]
) -> None:
    povid, again, other = (Povid(collator.encoder, [POVID], seed) for seed in (7, 7, 8))
    pixels = [
        each.noised(pairs[0], 500).prompt.model_inputs["pixel_values"]
        for each in (povid, again, other)
    ]
    assert torch.equal(pixels[0], pixels[1]) and not torch.equal(pixels[0], pixels[2])
    clean = pairs[0].prompt.model_inputs["pixel_values"]
    low, high = pixel_range(collator.encoder.processor.image_processor)
    black, white = torch.zeros(3, 64, 64), torch.ones(3, 64, 64)
    assert pixels[0].shape == clean.shape and not torch.equal(pixels[0], clean)
    for channel in range(3):
        assert (
            low[channel] - 1e-6 <= pixels[0][:, channel].min()
            and pixels[0][:, channel].max() <= high[channel] + 1e-6
        )
    mean, std = (
        torch.tensor(getattr(collator.encoder.processor.image_processor, n))
        for n in ("image_mean", "image_std")
    )
    torch.testing.assert_close(
        ((black - mean[:, None, None]) / std[:, None, None])[:, 0, 0], low
    )
    torch.testing.assert_close(
        ((white - mean[:, None, None]) / std[:, None, None])[:, 0, 0], high
    )
    assert torch.equal(pairs[0].prompt.model_inputs["pixel_values"], clean), (
        "the cache's pixels stay clean"
    )


def test_flat_patches_are_clamped_by_channel() -> None:
    """Qwen's layout: 2 patches of 3 channels with 4 values each."""
    low, high = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1.0, 2.0, 3.0])
    found = clamp_pixels(torch.full((2, 12), 9.0), low, high)
    assert found.tolist() == [[1.0] * 4 + [2.0] * 4 + [3.0] * 4] * 2


def test_a_prompt_without_an_image_is_its_own_noised_one(
    collator: Collator, store: ImageStore
) -> None:
    pair = collator.encode(replace(make_pairs(store, 1)[0], prompt=text_prompt()))
    assert isinstance(pair, EncodedPair)
    assert Povid(collator.encoder, [POVID], 7).noised(pair, 500) is pair


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
    make: Callable[..., None] = Povid.__init__
    monkeypatch.setattr(
        Povid,
        "__init__",
        lambda self, *args: (seeds.append(args[2]), make(self, *args))[1],
    )
    povid = {"bdhs": {"kind": "povid", "povid_shared_indices": shared}}
    trainer = Learner(run_config(tuning=tuning, source_losses=povid))
    trainer.start()
    pairs = make_pairs(store, 6)
    results = [trainer.step(step, pairs)[0].metrics for step in range(5)]
    if tuning is None:
        assert (
            results[0]["loss/bdhs"]
            == results[0]["loss/online"]
            == pytest.approx(math.log(2), abs=1e-5)
        )
    assert results[-1]["loss/bdhs"] < results[0]["loss/bdhs"]
    assert results[-1]["loss/online"] < results[0]["loss/online"]
    assert len(set(seeds)) == 5, "every step draws its own noise"
    trainer.step(5, [pair for pair in pairs if pair.source == "online"])
    assert len(seeds) == 5, "no noised forward without a povid pair"
