"""What both ends of a push compute alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.push.fingerprint import Digest, fingerprint, fingerprint_of_all
from common.push.plan import (
    ALIGNMENT,
    BLOCK,
    Piece,
    PushPlan,
    TensorSpec,
    model_digest,
)

SPECS = st.builds(
    TensorSpec,
    name=st.text("abc.", min_size=1, max_size=8),
    dtype=st.sampled_from(["float32", "bfloat16", "uint8"]),
    shape=st.lists(st.integers(0, 12), max_size=3).map(tuple),
)
PLANS = st.builds(
    PushPlan,
    tensors=st.lists(SPECS, min_size=1, max_size=12).map(tuple),
    bucket_bytes=st.integers(1, 3000),
    model=st.just("model"),
)


@given(plan=PLANS)
def test_buckets_hold_all_tensors_in_order_and_none_more_than_it_must(
    plan: PushPlan,
) -> None:
    pieces: list[Piece] = []
    for bucket in plan.buckets():
        end = 0
        for piece in bucket.pieces:
            assert piece.offset % ALIGNMENT == 0
            assert piece.offset >= end
            end = piece.offset + piece.end - piece.begin
        assert end <= bucket.num_bytes
        assert end <= max(BLOCK, plan.bucket_bytes)
        pieces += bucket.pieces
    specs = []
    end = 0
    for piece in pieces:
        assert piece.begin == (0 if piece.is_first else end)
        # A fingerprint can be taken part by part.
        assert piece.is_last or (piece.end - piece.begin) % BLOCK == 0
        end = piece.end
        if piece.is_last:
            specs.append(piece.spec)
    assert tuple(specs) == plan.tensors


@given(plan=PLANS)
def test_a_plan_passes_through_json(plan: PushPlan) -> None:
    text = json.dumps(plan.to_json())
    assert PushPlan.of_json(json.loads(text)) == plan


def test_any_bit_and_any_block_counts() -> None:
    values = torch.arange(5000, dtype=torch.float32)
    before = fingerprint(values)
    assert fingerprint(values.clone()) == before
    for place in (0, 63, 64, 4097, 4999):
        changed = values.clone()
        changed.view(torch.int32)[place] ^= 1
        assert fingerprint(changed) != before
    swapped = torch.cat([values[1024:2048], values[:1024], values[2048:]])
    assert fingerprint(swapped) != before
    by_parts = Digest()
    for part in values.split(BLOCK):
        by_parts.add(part)
    assert by_parts.value == before
    # The last values are fewer than a sum has.
    assert fingerprint(values[:-1]) != before
    assert fingerprint(torch.empty(0)) == fingerprint(torch.empty(0, 7))


def test_the_fingerprint_of_all_knows_names_and_no_order() -> None:
    first = TensorSpec("a", "float32", (2,))
    second = TensorSpec("b", "float32", (2,))
    one, two = b"1" * 32, b"2" * 32
    together = fingerprint_of_all([(first, one), (second, two)])
    assert together == fingerprint_of_all([(second, two), (first, one)])
    assert together != fingerprint_of_all([(first, two), (second, one)])


def test_another_revision_of_the_model_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"rope_theta": 1e6, "transformers_version": "1"}')
    plan = PushPlan((TensorSpec("a", "float32", ()),), 1, model_digest(tmp_path))
    # What no computation reads may differ.
    config.write_text('{"transformers_version": "2", "rope_theta": 1e6}')
    plan.check_model(3, str(tmp_path))
    config.write_text('{"rope_theta": 5e5}')
    with pytest.raises(
        UserError, match=r"weights 3: .* config\.json .* copy the same revision"
    ):
        plan.check_model(3, str(tmp_path))
