"""The learner computes each family as transformers does: padded rows, and the tree or the reason why there is none."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from common.chat import ChatEncoder
from common.data.images import ImageStore
from common.model_parts import vision_side_parameters, vision_tower_parameters
from common.records import PreferencePair, Prompt, Response
from learner.batch.collate import Collator
from learner.batch.encoded import EncodedPair, rows_of
from learner.forward import decoder
from learner.forward.logps import completion_logps
from learner.forward.tree import TreeBatch
from learner.forward.tree_logps import prepare, tree_logps, why_not
from learner.model.vision_features import VisionShare
from tests.families.case import Case
from tests.families.cases import parameters
from tests.families.policy import HubPolicy
from tests.families.prompts import ask, blank, prompts_of
from tests.learner.families import FAMILIES

ANSWERS = ("There is a red circle.", "A blue square is at the top left.", "No.")


class Setup:
    """A case's pairs, and transformers' log-probs and gradients of them, in float64."""

    def __init__(self, case: Case, store: ImageStore) -> None:
        self.case = case
        self.hub = HubPolicy(case, torch.float64)
        self.encoder = ChatEncoder(case.directory(), max_length=512)
        first, second, *_ = prompts_of(case, store)
        both = ask("both", *first.images, *second.images)
        text = ask("text", text="What is a triangle?")
        # One prompt in two pairs, pictures of two sizes, two pictures, and none.
        self.pairs = [
            self.pair(first, ANSWERS[0], ANSWERS[1]),
            self.pair(second, ANSWERS[1], ANSWERS[2]),
            self.pair(first, ANSWERS[0], ANSWERS[2]),
            self.pair(both, ANSWERS[2], ANSWERS[0]),
            self.pair(text, ANSWERS[1], ANSWERS[0]),
        ]
        self.grey = self.pair(ask("grey", blank(case.sizes[0], store)), *ANSWERS[:2])
        self.expected = self.truth(self.hub.model)
        self.gradients = gradients_of(self.hub.model, self.expected)

    def pair(self, prompt: Prompt, chosen: str, rejected: str) -> EncodedPair:
        collator = Collator(self.encoder)
        pair = PreferencePair(
            f"{prompt.id}-{rejected}",
            prompt,
            Response(chosen),
            Response(rejected),
            "test",
        )
        encoded = collator.encode(pair)
        assert isinstance(encoded, EncodedPair), encoded
        return encoded

    def truth(self, model: Any) -> Tensor:
        """Summed log-probs, row by row, of the prompts as transformers' processor encodes them."""
        hub = copy.copy(self.hub)
        hub.model = model
        summed = []
        for pair, answer in rows_of(self.pairs):
            logprobs = hub.token_logprobs(pair.pair.prompt, answer)
            summed.append(logprobs.sum())
        return torch.stack(summed)

    def model(self, frozen: Any = None) -> Any:
        """A copy of the model, some of its parameters frozen."""
        model = copy.deepcopy(self.hub.model)
        for parameter in frozen(model) if frozen else ():
            parameter.requires_grad_(False)
        return model

    def tree(self) -> TreeBatch:
        batch = Collator(self.encoder, tree=True).batch(self.pairs)
        assert isinstance(batch, TreeBatch)
        return batch.to("cpu", torch.float64)


def gradients_of(model: Any, summed: Tensor) -> dict[str, Tensor]:
    """Gradients by name of a loss in which every row has a weight of its own."""
    model.zero_grad()
    weights = torch.linspace(-1, 2, len(summed), dtype=summed.dtype)
    (summed * weights).sum().backward()
    named = model.named_parameters()
    return {name: value.grad for name, value in named if value.grad is not None}


def assert_close(
    setup: Setup, model: Any, summed: Tensor, tolerance: float = 0.0
) -> None:
    """Log-probs, and gradients of whatever trains, relative to each gradient's norm."""
    tolerance = max(setup.case.learner_tolerance, tolerance)
    assert (summed - setup.expected).abs().max() <= tolerance
    actual = gradients_of(model, summed)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert set(actual) == set(trained) & set(setup.gradients)
    for name, value in actual.items():
        expected = setup.gradients[name]
        error = (value - expected).norm()
        # transformers' norms and rotary embeddings are float32 in any model.
        assert error <= max(2e-6, tolerance) * expected.norm() + 1e-9, name


def skip_without_tree(setup: Setup) -> None:
    if setup.case.name in FAMILIES:
        pytest.skip("tests/learner/forward has its trees")
    if why_not(setup.hub.model) is not None:
        pytest.skip("rows")


@pytest.fixture(scope="module", params=parameters())
def setup(request: pytest.FixtureRequest, store: ImageStore) -> Iterator[Setup]:
    yield Setup(request.param, store)


def test_padded_rows(setup: Setup) -> None:
    model = setup.model()
    batch = Collator(setup.encoder).collate(setup.pairs).to("cpu", torch.float64)
    logps = completion_logps(model, batch)
    assert_close(setup, model, logps.summed)


def test_the_forward_is_the_one_that_is_claimed(setup: Setup) -> None:
    assert why_not(setup.hub.model) == setup.case.rows_because


def test_pictures_count(setup: Setup) -> None:
    pairs = [setup.pairs[0], setup.grey]
    batch = Collator(setup.encoder).collate(pairs).to("cpu", torch.float64)
    with torch.no_grad():
        seen, unseen, *_ = completion_logps(setup.hub.model, batch).summed
    assert (seen - unseen).abs() > 0.1


@pytest.mark.parametrize("fused_layers", [False, True])
def test_tree(setup: Setup, fused_layers: bool) -> None:
    skip_without_tree(setup)
    model = setup.model()
    language, vision = model.get_decoder(), model.config.vision_config
    if fused_layers and decoder.why_not(language, vision) is not None:
        pytest.skip("plain layers")
    prepare(model, fused_layers)
    logps = tree_logps(model, setup.tree())
    # transformers' norms are float32 in any model, ours are not.
    assert_close(setup, model, logps.summed, tolerance=5e-6 if fused_layers else 0.0)


@pytest.mark.parametrize(
    ("share", "frozen"),
    [("features", vision_side_parameters), ("tower", vision_tower_parameters)],
)
def test_a_frozen_vision_side_runs_once(setup: Setup, share: str, frozen: Any) -> None:
    skip_without_tree(setup)
    model = setup.model(frozen)
    prepare(model)
    shared = VisionShare(model, 1 << 30)
    assert shared.share == share
    for _ in range(2):
        logps = tree_logps(model, setup.tree(), shared=shared)
        assert_close(setup, model, logps.summed)
    assert shared.num_runs == 3
