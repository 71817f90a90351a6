from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import learner.forward.logps
from common.data.images import ImageStore
from common.records import Response
from learner.batch.collate import Collator, EncodedPair, RowBatch
from learner.forward.logps import completion_logps
from learner.model.policy import load_model
from tests.learner.helpers import make_pairs, text_prompt


@pytest.fixture(scope="module")
def model(model_path: Path) -> torch.nn.Module:
    return load_model(model_path, torch.float32).eval()


def encode(collator: Collator, store: ImageStore, num: int) -> list[EncodedPair]:
    """The first pairs, none of which is refused."""
    encoded = []
    for pair in make_pairs(store, num):
        outcome = collator.encode(pair)
        assert isinstance(outcome, EncodedPair)
        encoded.append(outcome)
    return encoded


def naive(model: torch.nn.Module, batch: RowBatch) -> torch.Tensor:
    """Summed log-probs from the whole logits of Hugging Face's own forward."""
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        **batch.media,
    )
    # Logits at a position are of the next token.
    logps = output.logits[:, :-1].float().log_softmax(-1)
    next_tokens = batch.input_ids[:, 1:, None]
    token_logps = logps.gather(2, next_tokens).squeeze(2)
    return (token_logps * batch.response_mask[:, 1:]).sum(1)


@torch.no_grad()
def test_equal_to_the_full_logits(
    model: torch.nn.Module,
    collator: Collator,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = collator.collate(encode(collator, store, 4))
    expected = naive(model, batch)
    for chunk, fused in ((1024, False), (7, False), (7, True)):
        monkeypatch.setattr(learner.forward.logps, "CHUNK_POSITIONS", chunk)
        logps = completion_logps(model, batch, fused=fused)
        assert logps.num_tokens.tolist() == batch.response_mask.sum(1).tolist()
        torch.testing.assert_close(logps.summed, expected, atol=1e-4, rtol=1e-5)


def test_gradients_equal_to_the_full_logits(
    model: torch.nn.Module,
    collator: Collator,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learner.forward.logps, "CHUNK_POSITIONS", 7)
    batch = collator.collate(encode(collator, store, 2))
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    projector = model.model.multi_modal_projector
    parameters = [model.lm_head.weight, projector.linear_1.weight]

    def gradients(summed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((summed * weights).sum(), parameters)

    expected = gradients(naive(model, batch))
    for fused in (True, False):
        actual = gradients(completion_logps(model, batch, fused=fused).summed)
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_the_vocabulary_is_never_wider_than_a_chunk(
    model: torch.nn.Module,
    collator: Collator,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learner.forward.logps, "CHUNK_POSITIONS", 5)
    chunk_lengths = []

    def count(module: torch.nn.Module, inputs: object, logits: torch.Tensor) -> None:
        chunk_lengths.append(len(logits))

    handle = model.lm_head.register_forward_hook(count)
    batch = collator.collate(encode(collator, store, 2))
    completion_logps(model, batch, fused=False)
    handle.remove()
    assert max(chunk_lengths) == 5
    assert sum(chunk_lengths) == int(batch.response_mask.sum())


def one_by_one(
    model: torch.nn.Module,
    collator: Collator,
    pairs: list[EncodedPair],
) -> torch.Tensor:
    """Summed log-probs from a batch for each pair: all chosen, then all rejected ones."""
    alone = []
    for pair in pairs:
        batch = collator.collate([pair])
        alone.append(completion_logps(model, batch).summed)
    return torch.stack(alone).T.reshape(-1)


@torch.no_grad()
def test_padding_changes_nothing(
    model: torch.nn.Module,
    collator: Collator,
    store: ImageStore,
) -> None:
    pairs = encode(collator, store, 3)
    padded = completion_logps(model, collator.collate(pairs)).summed
    expected = one_by_one(model, collator, pairs)
    torch.testing.assert_close(padded, expected, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_text_rows_beside_image_rows(
    model: torch.nn.Module,
    collator: Collator,
    store: ImageStore,
) -> None:
    image, other = make_pairs(store, 2)
    pairs = [
        collator.encode(replace(other, prompt=text_prompt())),
        collator.encode(image),
    ]
    together = completion_logps(model, collator.collate(pairs)).summed
    alone = one_by_one(model, collator, pairs)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_the_picture_matters(
    model: torch.nn.Module,
    collator: Collator,
    store: ImageStore,
) -> None:
    batch = collator.collate(encode(collator, store, 1))
    black = torch.zeros_like(batch.media["pixel_values"])
    blank = replace(batch, media={"pixel_values": black})
    seeing = completion_logps(model, batch).summed
    blind = completion_logps(model, blank).summed
    assert (seeing - blind).abs().min() > 1e-2


@torch.no_grad()
def test_token_logps_of_one_response(
    model: torch.nn.Module,
    collator: Collator,
    store: ImageStore,
) -> None:
    (pair,) = make_pairs(store, 1)
    tokens = (5, 6, 7, 8)
    batch = collator.single(pair.prompt, tokens)
    logps = completion_logps(model, batch)
    assert logps.token_logps.shape == (1, 4)
    torch.testing.assert_close(
        logps.token_logps.sum(1), naive(model, batch), atol=1e-4, rtol=1e-5
    )


def test_float64_stays_float64(
    model_path: Path,
    collator: Collator,
    store: ImageStore,
) -> None:
    double = load_model(model_path, torch.float64).eval()
    batch = collator.single(make_pairs(store, 1)[0].prompt, (5, 6)).to(
        "cpu", torch.float64
    )
    assert completion_logps(double, batch).token_logps.dtype == torch.float64


def test_response_of_one_token(
    model: torch.nn.Module,
    collator: Collator,
    store: ImageStore,
) -> None:
    (pair,) = make_pairs(store, 1)
    short = replace(pair, chosen=Response("", (5,)), rejected=Response("", (6,)))
    batch = collator.collate([collator.encode(short)])
    assert completion_logps(model, batch).num_tokens.tolist() == [1, 1]
