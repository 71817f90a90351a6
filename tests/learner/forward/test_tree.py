"""One flat row equals the plain two-row forward, in float64 and gradients included, for every family it is used on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import learner.model.vision_features
from learner.forward.logps import completion_logps
from learner.forward.tree import Media, TreeBatch, tree_batch, tree_rows
from learner.forward.tree_attention import tree_attention
from learner.forward.tree_logps import positions, tree_logps, why_not
from learner.model.vision_features import VisionShare
from learner.model.vision_tower import Features, image_features
from tests.learner.families import FAMILIES, family
from tests.learner.trees import (
    Rows,
    assert_same_gradients,
    gradients,
    pairs_of,
    plain,
    tree_model,
)

EACH_FAMILY = pytest.mark.parametrize("name", FAMILIES)


def freeze(model: Any, *parts: str) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in parts))
    return model


@EACH_FAMILY
@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("fused", [True, False])
def test_equal_to_the_plain_forward_with_gradients(name: str, fused: bool) -> None:
    tiny = family(name)
    pairs = pairs_of(tiny)
    expected = plain(tiny.model, pairs)
    model = tree_model(tiny)
    logps = tree_logps(model, tree_batch(pairs), fused)
    torch.testing.assert_close(logps.summed, expected, atol=1e-9, rtol=1e-9)
    chosen_lengths = [len(pair.chosen) for pair in pairs]
    rejected_lengths = [len(pair.rejected) for pair in pairs]
    assert logps.num_tokens.tolist() == chosen_lengths + rejected_lengths
    actual_gradients = gradients(model, logps.summed)
    expected_gradients = gradients(tiny.model, expected)
    tiny.model.zero_grad()
    assert_same_gradients(actual_gradients, expected_gradients)


@EACH_FAMILY
def test_a_prepared_model_still_does_rows(name: str) -> None:
    tiny = family(name)
    model = tree_model(tiny)
    pairs = [pair for pair in pairs_of(tiny) if len(pair.image_key) == 1]
    batch = Rows().collate(pairs).to("cpu", torch.float64)
    with torch.no_grad():
        actual = completion_logps(model, batch).summed
        expected = plain(tiny.model, pairs)
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


@EACH_FAMILY
def test_the_picture_matters(name: str) -> None:
    tiny = family(name)
    model = tree_model(tiny)
    logps = []
    for seed in (2, 4):
        pair = tiny.pair("a1", seed, chosen=(20,), rejected=(21,))
        with torch.no_grad():
            logps.append(tree_logps(model, tree_batch([pair])).summed)
    assert (logps[0] - logps[1]).abs().min() > 1e-3


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("count", [2, 16])
def test_many_completions_of_one_prompt(count: int) -> None:
    """Long completions of many siblings go through one attention call each, two through a mask."""
    tiny = family("llava")
    completions = []
    for number in range(count):
        tokens = (7 * number + torch.arange(12)) % 30 + 20
        completions.append(tuple(tokens.tolist()))
    chosen, *others = completions
    pairs = [tiny.pair("a1", 1, chosen=chosen, rejected=other) for other in others]
    batch = tree_batch(pairs)
    assert len(batch.segments) == 1
    assert len(batch.segments[0].lengths) == count
    assert (batch.segments[0].mask is None) == (count == 16)
    with torch.no_grad():
        actual = tree_logps(tree_model(tiny), batch).summed
        expected = plain(tiny.model, pairs)
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


def test_keys_of_grouped_queries_are_kept_ungrouped() -> None:
    """4 heads ask 2; kept are keys and values once, and the query."""
    batch = tree_batch(pairs_of(family("llava")))
    saved: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    query_shape = (1, 4, batch.num_tokens, 8)
    key_shape = (1, 2, batch.num_tokens, 8)
    query = torch.randn(query_shape, requires_grad=True)
    key = torch.randn(key_shape, requires_grad=True)
    value = torch.randn(key_shape, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tree_attention(
            torch.nn.Identity(),
            query,
            key,
            value,
            attention_mask=None,
            tree=batch.segments,
        )
    assert saved.count(query_shape) == 1
    assert saved.count(key_shape) == 2


def test_rows_in_any_order_and_number() -> None:
    """Three completions of one prompt around one of another, one of them asked for twice."""
    tiny = family("llava")
    one = tiny.pair("a1", 1, chosen=(20,), rejected=(21, 22))
    two = tiny.pair("b1", chosen=(23, 24), rejected=(25,))
    rows = [
        (one, (21, 22)),
        (two, (23, 24)),
        (one, (20,)),
        (one, (26, 27, 28)),
        (one, (21, 22)),
    ]
    pairs = [replace(pair, chosen=completion) for pair, completion in rows]
    with torch.no_grad():
        actual = tree_logps(tree_model(tiny), tree_rows(rows)).summed
        expected = plain(tiny.model, pairs)[: len(rows)]
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


def test_every_thing_is_there_once() -> None:
    tiny = family("llava")
    pairs = pairs_of(tiny)
    batch = tree_batch(pairs)
    prompt_lengths = {}
    completion_lengths = {}
    for pair in pairs:
        prompt_lengths[pair.prompt_key] = len(pair.prompt.token_ids)
        for completion in (pair.chosen, pair.rejected):
            completion_lengths[pair.prompt_key, completion] = len(completion)
    num_prompt_tokens = sum(prompt_lengths.values())
    num_completion_tokens = sum(completion_lengths.values())
    assert batch.num_tokens == num_prompt_tokens + num_completion_tokens
    assert len(prompt_lengths) == len(pairs) - 1
    image_keys = [pairs[index].image_key for index in (0, 2, 5)]
    assert [media.sha256 for media in batch.media] == image_keys
    assert batch.media_of == (0, None, 1, 0, 2)
    assert batch.segments[-1].stop == batch.num_tokens


def test_positions_start_again_behind_the_prompt() -> None:
    """Prompt of n tokens; both completions begin at n, not behind each other."""
    tiny = family("llava")
    pair = tiny.pair("a1 a2", 1, chosen=(20, 21, 22), rejected=(30, 31))
    n = len(pair.prompt.token_ids)
    chosen, rejected = [n, n + 1, n + 2], [n, n + 1]
    actual = positions(tiny.model, tree_batch([pair]))[0].tolist()
    assert actual == [*range(n), *chosen, *rejected]


def held_bytes(shared: VisionShare) -> int:
    """Bytes of the storages behind the kept tensors: a view holds the whole of what it is a view of."""
    storages = {}
    for features in shared.kept.values():
        for tensors in (features.pooled, *features.levels):
            for tensor in tensors:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@EACH_FAMILY
def test_a_frozen_tower_runs_once_for_both_models_and_all_steps(name: str) -> None:
    tiny = family(name)
    policy = freeze(
        tree_model(tiny),
        "vision_tower",
        "visual.blocks",
        "visual.patch_embed",
        "visual.pos_embed",
    )
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for key, parameter in reference.named_parameters():
            parameter.mul_(1.5 if "projector" in key or "merger" in key else 1.0)
    shared = VisionShare(policy, 1 << 30)
    assert shared.share == "tower"
    pairs = pairs_of(tiny)
    for step in range(2):
        batch: TreeBatch = tree_batch(pairs)
        for model in (policy, reference):
            actual = tree_logps(model, batch, shared=shared).summed
            expected = plain(model, pairs)
            torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)
            assert_same_gradients(gradients(model, actual), gradients(model, expected))
        assert shared.num_runs == 3, (
            f"step {step}: pictures (1), (2) and (2, 3), each once"
        )
    assert shared.kept.currsize == held_bytes(shared) > 0


@EACH_FAMILY
def test_a_frozen_vision_side_gives_one_set_of_features(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three entries of media, two at a time; one that leaves frees what it is counted with."""
    sizes: list[int] = []

    def counted(model: Any, media: Sequence[Media]) -> list[Features]:
        sizes.append(len(media))
        return image_features(model, media)

    monkeypatch.setattr(learner.model.vision_features, "IMAGES_PER_RUN", 2)
    monkeypatch.setattr(learner.model.vision_features, "image_features", counted)
    tiny = family(name)
    vision = ("vision", "visual", "projector", "connector", "image_newline")
    model = freeze(tree_model(tiny), *vision)
    shared = VisionShare(model, 1 << 30)
    assert shared.share == "features"
    pairs = pairs_of(tiny)
    for _ in range(2):
        actual = tree_logps(model, tree_batch(pairs), shared=shared).summed
        expected = plain(model, pairs)
        torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)
        assert_same_gradients(gradients(model, actual), gradients(model, expected))
    assert shared.num_runs == 3
    assert sizes == [2, 1]
    shared.kept.popitem()
    num_bytes = sum(features.num_bytes for features in shared.kept.values())
    assert num_bytes == held_bytes(shared) > 0


def test_kept_features_are_bounded() -> None:
    tiny = family("llava")
    model = freeze(tree_model(tiny), "vision_tower")
    shared = VisionShare(model, 0)
    with torch.no_grad():
        for _ in range(2):
            tree_logps(model, tree_batch(pairs_of(tiny)), shared=shared)
    assert shared.num_runs == 6
    assert (shared.kept.currsize, len(shared.kept)) == (0, 0)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_nothing_is_shared_of_a_tower_that_trains(name: str) -> None:
    shared = VisionShare(tree_model(family(name)), 1)
    assert shared.share == "nothing"
    assert shared.of(tree_batch(pairs_of(family(name)))) is None


def test_models_without_a_proof_are_refused_with_the_reason() -> None:
    model = copy.deepcopy(family("llava").model)
    model.config.model_type = "paligemma"
    assert "no proof for the family paligemma" in (why_not(model) or "")
    model.config.text_config.sliding_window = 16
    assert why_not(model) == "the language model attends through a sliding window"
    model.config.text_config.sliding_window = None
    model.config.text_config.attn_logit_softcapping = 50.0
    assert why_not(model) == "the language model caps its attention scores"
    window = copy.deepcopy(family("qwen2_5_vl").model)
    window.config.text_config.layer_types = [
        "full_attention",
        "sliding_attention",
        "full_attention",
    ]
    assert why_not(window) == "the language model has layers with a sliding window"


def test_gradient_checkpointing_changes_no_gradient() -> None:
    tiny = family("llava")
    pairs = pairs_of(tiny)
    plain_model = tree_model(tiny).train()
    checkpointing = tree_model(tiny).train()
    checkpointing.gradient_checkpointing_enable({"use_reentrant": False})
    runs = []
    for model in (checkpointing, plain_model):
        summed = tree_logps(model, tree_batch(pairs)).summed
        runs.append(gradients(model, summed))
    assert_same_gradients(runs[0], runs[1])
