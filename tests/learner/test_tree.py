"""One flat row equals the plain two-row forward, in float64 and gradients included, for every family it is used on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import learner.vision
from learner.collate import Collator, RowBatch
from learner.encoded import EncodedPair
from learner.logps import completion_logps
from learner.tower import Features, image_features
from learner.tree import Media, TreeBatch, tree_batch, tree_rows
from learner.tree_attention import tree_attention
from learner.tree_logps import positions, prepare, tree_logps, why_not
from learner.vision import VisionShare
from tests.learner.families import FAMILIES, Family, family

EACH = pytest.mark.parametrize("name", FAMILIES)


class Rows(Collator):
    """The plain collation without an encoder: it needs the padding token only."""

    def __init__(self) -> None:
        self.encoder = type("E", (), {"tokenizer": type("T", (), {"pad_token_id": 0})})  # type: ignore[assignment]


def pairs_of(own: Family) -> list[EncodedPair]:
    """Different lengths and pictures, text alone, one prompt and chosen answer in two pairs, a repeated picture."""
    return [
        own.pair("a1 a2 a3", 1, chosen=(20, 21, 22, 23), rejected=(30,)),
        own.pair("b1", chosen=(24,), rejected=(31, 32)),
        own.pair("c1 c2", 2, chosen=(25, 26), rejected=(33, 34, 35)),
        own.pair("a1 a2 a3", 1, chosen=(20, 21, 22, 23), rejected=(36, 37, 38)),
        own.pair("d1 d2", 1, chosen=(27, 28, 29), rejected=(39, 40)),
        own.pair("e1", 2, 3, chosen=(27, 28), rejected=(28,)),
    ]


def plain(model: Any, pairs: list[EncodedPair]) -> Tensor:
    """Summed log-probs from the whole logits of transformers' own forward, pair by pair and side by side."""

    def one(pair: EncodedPair, response: tuple[int, ...]) -> Tensor:
        batch: RowBatch = (
            Rows().rows([(pair.prompt, response)]).to("cpu", torch.float64)
        )
        logits = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            **batch.media,
        ).logits[0]
        found = logits[-len(response) - 1 : -1].log_softmax(-1)
        return found[torch.arange(len(response)), torch.tensor(response)].sum()

    return torch.stack(
        [one(p, p.chosen) for p in pairs] + [one(p, p.rejected) for p in pairs]
    )


def gradients(model: Any, summed: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (summed * torch.linspace(-1, 2, len(summed), dtype=torch.float64)).sum().backward()
    return {
        name: p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Relative to each gradient's norm; transformers' RMSNorm and rotary embedding are float32 in any model."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 2e-6 * value.norm() + 1e-9, name


def trees(own: Family) -> Any:
    model = copy.deepcopy(own.model)
    assert why_not(model) is None
    prepare(model)
    return model


def freeze(model: Any, *parts: str) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in parts))
    return model


@EACH
@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("fused", [True, False])
def test_equal_to_the_plain_forward_with_gradients(name: str, fused: bool) -> None:
    own = family(name)
    pairs = pairs_of(own)
    expected = plain(own.model, pairs)
    model = trees(own)
    logps = tree_logps(model, tree_batch(pairs), fused)
    torch.testing.assert_close(logps.summed, expected, atol=1e-9, rtol=1e-9)
    assert logps.num_tokens.tolist() == [len(p.chosen) for p in pairs] + [
        len(p.rejected) for p in pairs
    ]
    found, wanted = gradients(model, logps.summed), gradients(own.model, expected)
    own.model.zero_grad()
    assert_same(found, wanted)


@EACH
def test_a_prepared_model_still_does_rows(name: str) -> None:
    own = family(name)
    model, pairs = trees(own), [p for p in pairs_of(own) if len(p.image_key) == 1]
    with torch.no_grad():
        batch = Rows().collate(pairs).to("cpu", torch.float64)
        torch.testing.assert_close(
            completion_logps(model, batch).summed,
            plain(own.model, pairs),
            atol=1e-9,
            rtol=1e-9,
        )


@EACH
def test_the_picture_matters(name: str) -> None:
    own = family(name)
    model = trees(own)
    with torch.no_grad():
        one, two = (
            tree_logps(
                model, tree_batch([own.pair("a1", seed, chosen=(20,), rejected=(21,))])
            ).summed
            for seed in (2, 4)
        )
    assert (one - two).abs().min() > 1e-3


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("count", [2, 16])
def test_many_completions_of_one_prompt(count: int) -> None:
    """Long completions of many siblings go through one attention call each, two through a mask."""
    own = family("llava")
    long = [
        tuple(20 + (7 * number + place) % 30 for place in range(12))
        for number in range(count)
    ]
    pairs = [own.pair("a1", 1, chosen=long[0], rejected=other) for other in long[1:]]
    batch = tree_batch(pairs)
    assert len(batch.segments) == 1
    assert len(batch.segments[0].lengths) == count
    assert (batch.segments[0].mask is None) == (count == 16)
    with torch.no_grad():
        found = tree_logps(trees(own), batch).summed
        torch.testing.assert_close(found, plain(own.model, pairs), atol=1e-9, rtol=1e-9)


def test_keys_of_grouped_queries_are_kept_ungrouped() -> None:
    """4 heads ask 2; kept are keys and values once, and the query."""
    batch = tree_batch(pairs_of(family("llava")))
    saved: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    query, key, value = (
        torch.randn(1, heads, batch.num_tokens, 8, requires_grad=True)
        for heads in (4, 2, 2)
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tree_attention(
            torch.nn.Identity(), query, key, value, None, tree=batch.segments
        )
    assert [saved.count((1, heads, batch.num_tokens, 8)) for heads in (4, 2)] == [1, 2]


def test_rows_in_any_order_and_number() -> None:
    """Three completions of one prompt around one of another, one of them asked for twice."""
    own = family("llava")
    one, two = (
        own.pair("a1", 1, chosen=(20,), rejected=(21, 22)),
        own.pair("b1", chosen=(23, 24), rejected=(25,)),
    )
    rows = [
        (one, (21, 22)),
        (two, (23, 24)),
        (one, (20,)),
        (one, (26, 27, 28)),
        (one, (21, 22)),
    ]
    with torch.no_grad():
        found = tree_logps(trees(own), tree_rows(rows)).summed
        pairs = [replace(pair, chosen=completion) for pair, completion in rows]
        torch.testing.assert_close(
            found, plain(own.model, pairs)[: len(rows)], atol=1e-9, rtol=1e-9
        )


def test_every_thing_is_there_once() -> None:
    own = family("llava")
    pairs = pairs_of(own)
    batch = tree_batch(pairs)
    prompts = {p.prompt_key: p for p in pairs}
    completions = {
        (p.prompt_key, side) for p in pairs for side in (p.chosen, p.rejected)
    }
    expected = sum(len(p.prompt.token_ids) for p in prompts.values()) + sum(
        len(side) for _, side in completions
    )
    assert batch.num_tokens == expected
    assert len(prompts) == len(pairs) - 1
    assert [media.sha256 for media in batch.media] == [
        pairs[0].image_key,
        pairs[2].image_key,
        pairs[5].image_key,
    ]
    assert batch.media_of == (0, None, 1, 0, 2)
    assert batch.segments[-1].stop == batch.num_tokens


def test_positions_start_again_behind_the_prompt() -> None:
    """Prompt of n tokens; both completions begin at n, not behind each other."""
    own = family("llava")
    pair = own.pair("a1 a2", 1, chosen=(20, 21, 22), rejected=(30, 31))
    n = len(pair.prompt.token_ids)
    assert positions(own.model, tree_batch([pair]))[0].tolist() == [
        *range(n),
        n,
        n + 1,
        n + 2,
        n,
        n + 1,
    ]


def held_bytes(shared: VisionShare) -> int:
    """What the kept tensors keep in memory, those that they are views of included."""
    kept = [
        t
        for f in shared._kept.values()
        for t in [*f.pooled, *(each for level in f.levels for each in level)]
    ]
    return sum(
        {
            each.data_ptr(): each.nbytes()
            for each in (tensor.untyped_storage() for tensor in kept)
        }.values()
    )


@EACH
def test_a_frozen_tower_runs_once_for_both_models_and_all_steps(name: str) -> None:
    own = family(name)
    policy = freeze(
        trees(own),
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
    pairs = pairs_of(own)
    for step in range(2):
        batch: TreeBatch = tree_batch(pairs)
        for model in (policy, reference):
            found = tree_logps(model, batch, shared=shared).summed
            expected = plain(model, pairs)
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
            assert_same(gradients(model, found), gradients(model, expected))
        assert shared.num_runs == 3, (
            f"step {step}: pictures (1), (2) and (2, 3), each once"
        )
    assert shared._num_bytes == held_bytes(shared) > 0


@EACH
def test_a_frozen_vision_side_gives_one_set_of_features(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three entries of media, two at a time; one that leaves frees what it is counted with."""
    sizes: list[int] = []

    def counted(model: Any, media: Sequence[Media]) -> list[Features]:
        sizes.append(len(media))
        return image_features(model, media)

    monkeypatch.setattr(learner.vision, "TOWER_IMAGES", 2)
    monkeypatch.setattr(learner.vision, "image_features", counted)
    own = family(name)
    vision = ("vision", "visual", "projector", "connector", "image_newline")
    model = freeze(trees(own), *vision)
    shared = VisionShare(model, 1 << 30)
    assert shared.share == "features"
    pairs = pairs_of(own)
    for _ in range(2):
        found = tree_logps(model, tree_batch(pairs), shared=shared).summed
        expected = plain(model, pairs)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        assert_same(gradients(model, found), gradients(model, expected))
    assert shared.num_runs == 3
    assert sizes == [2, 1]
    shared._kept.popitem(last=False)
    assert (
        sum(each.num_bytes for each in shared._kept.values()) == held_bytes(shared) > 0
    )


def test_kept_features_are_bounded() -> None:
    own = family("llava")
    model = freeze(trees(own), "vision_tower")
    shared = VisionShare(model, 0)
    with torch.no_grad():
        for _ in range(2):
            tree_logps(model, tree_batch(pairs_of(own)), shared=shared)
    assert shared.num_runs == 6
    assert (shared._num_bytes, len(shared._kept)) == (0, 0)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_nothing_is_shared_of_a_tower_that_trains(name: str) -> None:
    shared = VisionShare(trees(family(name)), 1)
    assert shared.share == "nothing"
    assert shared.of(tree_batch(pairs_of(family(name)))) is None


def test_models_without_a_proof_are_refused_with_the_reason() -> None:
    model = copy.deepcopy(family("llava").model)
    model.config.text_config.sliding_window = 16
    assert why_not(model) == "the language model attends through a sliding window"
    model.config.model_type = "paligemma"
    assert "no proof for the family paligemma" in (why_not(model) or "")
    window = copy.deepcopy(family("qwen2_5_vl").model)
    window.config.text_config.layer_types = [
        "full_attention",
        "sliding_attention",
        "full_attention",
    ]
    assert why_not(window) == "the language model has layers of ['sliding_attention']"


def test_gradient_checkpointing_changes_no_gradient() -> None:
    own = family("llava")
    pairs = pairs_of(own)
    found = []
    for checkpointing in (False, True):
        model = trees(own).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found.append(gradients(model, tree_logps(model, tree_batch(pairs)).summed))
    assert_same(*found)
