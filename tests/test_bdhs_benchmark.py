"""benchmarks.bdhs on a model of a few thousand parameters: both sides do the same work, and the arithmetic by hand."""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from actors.bdhs.sentences import split_point
from benchmarks.bdhs import parser, summary
from benchmarks.bdhs_model import NUM_IMAGE_TOKENS, SMALL, build, make_prompts
from benchmarks.bdhs_sides import PARTS, Options, Ours, Plain, Turn
from benchmarks.random_llava import Size
from common.chat import ChatEncoder
from common.config.bdhs import BdhsConfig
from common.data.images import ImageStore
from common.sentences import split_sentences

TINY = Size(
    64,
    128,
    2,
    2,
    32,
    64,
    2,
    1,
)
CONFIG = BdhsConfig(
    rho=0.9,
    max_attempts=2,
    similarity_threshold=2,
    flip_prob=0,
    max_tokens=6,
    temperature=0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the tiny model."""
    path = tmp_path_factory.mktemp("benchmark")
    build(
        TINY,
        path / "model",
        torch.float32,
        "cpu",
    )
    return path


@pytest.fixture(scope="module")
def options(folder: Path) -> Options:
    return Options(
        str(folder / "model"),
        "float32",
        cuda=False,
        max_num_seqs=8,
        kv_cache_bytes=64 << 20,
        block_size=32,
        batches=(2, 3),
    )


@pytest.fixture
def plain(options: Options) -> Iterator[Plain]:
    side = Plain(options)
    yield side
    side.close()


@pytest.fixture
def ours(options: Options) -> Iterator[Ours]:
    side = Ours(options)
    yield side
    side.close()


def test_the_model_is_as_large_as_it_says(tmp_path: Path) -> None:
    assert build(SMALL, tmp_path, torch.float32, "cpu") > 25_000_000


def test_tails_are_about_ten_tokens(folder: Path) -> None:
    encoder = ChatEncoder(folder / "model", 1024)
    prompts = make_prompts(
        ImageStore(folder / "images"),
        20,
        0,
        4,
    )
    assert len({prompt.images[0].sha256 for prompt in prompts}) == 20
    assert encoder.encode_prompt(prompts[0]).num_image_tokens == NUM_IMAGE_TOKENS == 576
    rng = random.Random(0)
    tail_lengths = []
    for prompt in prompts:
        sentences = split_sentences(prompt.reference or "")
        assert len(sentences) == 4
        for sentence in sentences:
            tail = sentence[split_point(sentence, rng) :]
            # Without the end-of-sequence token.
            tail_lengths.append(len(encoder.encode_response(tail)) - 1)
    assert 9 < statistics.mean(tail_lengths) < 12


@pytest.mark.real
def test_both_sides_give_the_same_greedy_answers(
    plain: Plain,
    ours: Ours,
    folder: Path,
) -> None:
    prompts = make_prompts(
        ImageStore(folder / "images"),
        3,
        1,
        2,
    )
    turns = [plain.run(prompts, CONFIG), ours.run(prompts, CONFIG)]
    answers = turns[0].answers
    assert turns[1].answers == answers
    assert len(set(answers.values())) == 3
    # More than there are rows of one prompt: padding must not change an answer.
    plain.batch = 5
    assert plain.run(prompts, CONFIG).answers == answers
    for turn in turns:
        assert set(turn.parts) == set(PARTS)
        assert sum(turn.parts.values()) == pytest.approx(turn.seconds)
        for part in ("vision", "prefill", "decode", "other"):
            assert turn.parts[part] > 0
        assert turn.num_requests == 6
        assert 20 < turn.mean_visible < 100


def test_the_plain_side_takes_the_faster_batch(
    plain: Plain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {2: 5.0, 3: 4.0}

    def run(*_: object) -> Turn:
        return Turn(
            seconds[plain.batch],
            {},
            {},
            0.0,
            0,
        )

    monkeypatch.setattr(plain, "run", run)
    plain.settle([], CONFIG)
    assert plain.batch == 3


def test_summary_by_hand() -> None:
    """Plain 10 pairs in 20, 40, 30 s, ours in 2, 4, 3: medians 1/3 and 10/3 pairs/s, ratio 10.

    Plain spends 1 s of 3 per pair on vision for 4 sentences; encoded once that is 0.25, so 2.25 s against our 0.3: 7.5.
    """
    args: argparse.Namespace = parser().parse_args(["--cores", "0"])
    # Seconds per turn of 10 pairs.
    parts = {"vision": 10.0, "prefill": 1.0, "decode": 1.0, "filter": 0.0, "other": 0.0}
    plain = [Turn(seconds, parts, {}, 11.0, 40) for seconds in (20.0, 40.0, 30.0)]
    ours = [Turn(seconds, parts, {}, 12.0, 40) for seconds in (2.0, 4.0, 3.0)]
    result = summary(args, 10, {"plain": plain, "ours": ours})
    assert result["ratio"] == 10.0
    assert result["ratio_vision_once"] == 7.5
    assert result["pairs_per_s"] == {"plain": 0.333, "ours": 3.333}
    expected_spread = (0.5 - 0.25) / (1 / 3)
    assert result["spread"]["plain"] == pytest.approx(expected_spread, abs=1e-3)
    assert result["seconds_per_pair"]["plain"]["vision"] == 1.0
    assert result["requests"] == 40
    assert result["visible_tokens"] == 12.0
