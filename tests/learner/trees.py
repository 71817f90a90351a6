"""What tests of the flat row share: pairs that try everything, the plain forward as the truth, and gradients."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from learner.batch.collate import Collator
from learner.batch.encoded import EncodedPair
from learner.forward.tree_logps import prepare, why_not
from tests.learner.families import Family


class Rows(Collator):
    """The plain collation without an encoder: it needs the padding token only."""

    def __init__(self) -> None:
        tokenizer = type("Tokenizer", (), {"pad_token_id": 0})
        self.encoder = type("Encoder", (), {"tokenizer": tokenizer})  # type: ignore[assignment]


def pairs_of(tiny: Family) -> list[EncodedPair]:
    """Different lengths and pictures, text alone, one prompt and chosen answer in two pairs, a repeated picture."""
    return [
        tiny.pair("a1 a2 a3", 1, chosen=(20, 21, 22, 23), rejected=(30,)),
        tiny.pair("b1", chosen=(24,), rejected=(31, 32)),
        tiny.pair("c1 c2", 2, chosen=(25, 26), rejected=(33, 34, 35)),
        tiny.pair("a1 a2 a3", 1, chosen=(20, 21, 22, 23), rejected=(36, 37, 38)),
        tiny.pair("d1 d2", 1, chosen=(27, 28, 29), rejected=(39, 40)),
        tiny.pair("e1", 2, 3, chosen=(27, 28), rejected=(28,)),
    ]


def tree_model(tiny: Family) -> Any:
    """A copy of the family's model that goes through trees."""
    model = copy.deepcopy(tiny.model)
    assert why_not(model) is None
    prepare(model)
    return model


def plain(model: Any, pairs: list[EncodedPair]) -> Tensor:
    """Summed log-probs from the whole logits of transformers' own forward, pair by pair and side by side.

    All chosen completions, then all rejected ones.
    """
    chosen = [_plain_one(model, pair, pair.chosen) for pair in pairs]
    rejected = [_plain_one(model, pair, pair.rejected) for pair in pairs]
    return torch.stack(chosen + rejected)


def _plain_one(
    model: Any,
    pair: EncodedPair,
    completion: tuple[int, ...],
) -> Tensor:
    """Summed log-prob of a completion behind the pair's prompt."""
    row = replace(pair, chosen=completion)
    batch = Rows().collate_chosen([row])
    batch = batch.to("cpu", torch.float64)
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        **batch.media,
    )
    # The hidden state before a token predicts it.
    first_predictor = -len(completion) - 1
    logits = output.logits[0, first_predictor:-1]
    logps = logits.log_softmax(-1)
    positions = torch.arange(len(completion))
    return logps[positions, torch.tensor(completion)].sum()


def gradients(model: Any, summed: Tensor) -> dict[str, Tensor]:
    """Gradients by name of a loss in which every row has a weight of its own."""
    model.zero_grad()
    weights = torch.linspace(-1, 2, len(summed), dtype=torch.float64)
    loss = (summed * weights).sum()
    loss.backward()
    gradients_by_name = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients_by_name[name] = parameter.grad.clone()
    return gradients_by_name


def assert_same_gradients(
    actual: dict[str, Tensor],
    expected: dict[str, Tensor],
) -> None:
    """Relative to each gradient's norm; transformers' RMSNorm and rotary embedding are float32 in any model."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = (actual[name] - value).norm()
        assert error <= 2e-6 * value.norm() + 1e-9, name
