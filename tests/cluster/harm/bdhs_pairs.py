"""BDHS pairs of the shapes world and its policy, sampled by transformers: no engine has to start for them."""

from __future__ import annotations

import asyncio

from actors.bdhs.sampling import generate_pairs
from actors.bdhs.similarity import LexicalSimilarity
from benchmarks.bdhs_sides import Options, Plain
from common.config import SHAPES_POLICY
from common.config.bdhs import BdhsConfig
from common.data.images import ImageStore
from common.records import PreferencePair
from common.shapes.prompts import caption_prompts
from tests.real_runs import ROOT

NUM_IMAGE_TOKENS = 36
RHO = 0.5
"""As `python -m cluster.generate bdhs` has it for this policy."""
LONGEST = 16
"""Tokens of a sentence's rest; a whole sentence has at most 12."""


def bdhs_pairs(count: int, store: ImageStore) -> list[PreferencePair]:
    """A pair of each of the first training scenes."""
    options = Options(
        model=str(ROOT / SHAPES_POLICY),
        dtype="float32",
        cuda=False,
        max_num_seqs=0,
        kv_cache_bytes=0,
        block_size=0,
        batches=(128,),
    )
    side = Plain(options)
    try:
        return asyncio.run(_pairs(side, count, store))
    finally:
        side.close()


async def _pairs(side: Plain, count: int, store: ImageStore) -> list[PreferencePair]:
    prompts = caption_prompts("train", count, 0, store)
    outcomes = generate_pairs(
        iter(prompts),
        side.answer,
        config=BdhsConfig(rho=RHO, max_tokens=LONGEST, max_answer_tokens=72),
        similarity=LexicalSimilarity(),
        num_image_tokens=lambda prompt: NUM_IMAGE_TOKENS,
        window=count,
    )
    pairs: list[PreferencePair] = []
    async for outcome in outcomes:
        if isinstance(outcome.result, PreferencePair):
            pairs.append(outcome.result)
    return pairs
