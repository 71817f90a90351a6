from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from common.chat import ChatEncoder
from common.data.images import ImageStore
from common.errors import Refused, UserError
from common.records import PreferencePair, Prompt
from learner.batch.collate import Collator
from learner.batch.plan import BatchPlan, MicroSize, PairSize, plan_batch
from tests.learner.helpers import identical, make_pairs, without_image
from tests.learner.rank_threads import plans_of_ranks


def plans(
    pairs: list[PreferencePair],
    collator: Collator,
    micro_batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> list[BatchPlan]:
    """The plans of two ranks that read the same files."""
    return plans_of_ranks(pairs, [collator, collator], micro_batch, monkeypatch)


def ids(plan: BatchPlan) -> list[str]:
    """The pairs of each micro-batch, as in "0 2 (0)": their numbers, a filler's in brackets."""
    batches: list[str] = []
    for micro_batch in plan.micro_batches:
        words: list[str] = []
        num_counted = len(micro_batch.counted)
        for place, pair in enumerate(micro_batch.pairs):
            number = number_of(pair.pair)
            words.append(number if place < num_counted else f"({number})")
        batches.append(" ".join(words))
    return batches


def number_of(pair: PreferencePair) -> str:
    return pair.id.removeprefix("pair-")


def numbers_of(pairs: list[PreferencePair]) -> str:
    return " ".join(number_of(pair) for pair in pairs)


def with_refused(pairs: list[PreferencePair], *places: int) -> list[PreferencePair]:
    """The pairs, those at these places with equal sides."""
    changed = list(pairs)
    for place in places:
        changed[place] = identical(changed[place])
    return changed


def test_one_rank(collator: Collator, store: ImageStore) -> None:
    plan = plan_batch(make_pairs(store, 5), collator, MicroSize(2), 0, 1)
    assert ids(plan) == ["0 1", "2 3", "4"]
    assert len(plan.pairs) == 5


def test_ranks_run_equally_many_micro_batches(
    collator: Collator,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pairs 1 and 3 are refused: rank 1 has none left, and runs fillers of weight 0 beside rank 0's two batches."""
    pairs = with_refused(make_pairs(store, 4), 1, 3)
    first, second = plans(pairs, collator, 1, monkeypatch)
    assert ids(first) == ["0", "2"]
    assert ids(second) == ["(0)", "(0)"]
    assert len(first.pairs) == len(second.pairs) == 2
    for plan in (first, second):
        assert [drop.id for drop in plan.dropped] == ["pair-1", "pair-3"]


def test_the_plan_carries_the_order_of_gathered_rows(
    collator: Collator,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pair 2 is refused: rank 0 has pairs 0 and 4, rank 1 has 1 and 3; rows go rank by rank."""
    pairs = with_refused(make_pairs(store, 5), 2)
    for plan in plans(pairs, collator, 2, monkeypatch):
        assert numbers_of(plan.pairs) == "0 1 3 4"
        assert numbers_of(plan.rows) == "0 4 1 3"


def test_every_micro_batch_has_media_if_any_has(
    collator: Collator,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 1 has no picture: it runs pair 0 as a filler, because the vision side's gradients need all ranks."""
    pairs = make_pairs(store, 4)
    pairs[1] = without_image(pairs[1])
    pairs[3] = without_image(pairs[3])
    first, second = plans(pairs, collator, 2, monkeypatch)
    assert ids(first) == ["0 2"]
    assert ids(second) == ["1 3 (0)"]


class BlindEncoder(ChatEncoder):
    """Stands for a node that lacks the pictures with these hashes."""

    missing: frozenset[str] = frozenset()

    def load_images(self, prompt: Prompt) -> list[Image.Image]:
        for image in prompt.images:
            if image.sha256 in self.missing:
                raise Refused("image_missing", f"{image.path}: not on this node")
        return super().load_images(prompt)


def node_without(model_path: Path, pairs: list[PreferencePair]) -> Collator:
    encoder = BlindEncoder(model_path, max_length=256)
    encoder.missing = frozenset(pair.prompt.images[0].sha256 for pair in pairs)
    return Collator(encoder)


def test_a_filler_is_one_that_every_node_can_read(
    collator: Collator,
    model_path: Path,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 0 trains on pairs 0 and 2. Rank 1 lacks the picture of 0 and has refused pairs alone: 2 fills its place."""
    pairs = make_pairs(store, 4)
    for index in (1, 3):
        pairs[index] = identical(pairs[index])
    nodes = [collator, node_without(model_path, [pairs[0]])]
    first, second = plans_of_ranks(pairs, nodes, 1, monkeypatch)
    assert ids(first) == ["0", "2"]
    assert ids(second) == ["(2)", "(2)"]


def test_nodes_without_common_files_stop_together(
    collator: Collator,
    model_path: Path,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = make_pairs(store, 4)
    nodes = [collator, node_without(model_path, pairs)]
    # Both ranks raise: one that went on would wait for the other.
    with pytest.raises(UserError, match="every rank can encode") as caught:
        plans_of_ranks(pairs, nodes, 1, monkeypatch)
    assert "image_missing (pair-" in str(caught.value)


def test_cuts_by_tokens() -> None:
    """Limit 10: 4+5 fit, 7 is alone, 12 is too large for any limit and goes alone, 1+9 fit exactly."""
    sizes = [4, 5, 7, 12, 1, 9]
    # Prompts of one token, all different.
    pairs = [PairSize(key, 1, size - 1) for key, size in enumerate(sizes)]
    by_tokens = MicroSize(2, 10)
    cuts = by_tokens.cut(pairs)
    assert [sizes[cut] for cut in cuts] == [[4, 5], [7], [12], [1, 9]]
    assert by_tokens.cut([]) == []


def test_cuts_by_number_without_a_token_limit() -> None:
    pairs = [PairSize(key, 1, 1) for key in range(6)]
    cuts = MicroSize(4).cut(pairs)
    assert [len(pairs[cut]) for cut in cuts] == [4, 2]


def test_a_cut_counts_a_prompt_once() -> None:
    """2,900 + 5 · 200 = 3,900 of 4,096; the next cut has 2,900 + 3 · 200, and 600 are too many for another prompt."""
    long = PairSize(1, 2900, 200)
    other = PairSize(2, 400, 200)
    pairs = [long] * 8 + [other, long]
    assert MicroSize(1, 4096).cut(pairs) == [slice(0, 5), slice(5, 8), slice(8, 10)]
    assert MicroSize(1, 4100).cut(pairs) == [slice(0, 6), slice(6, 10)]
