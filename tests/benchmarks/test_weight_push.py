"""The benchmark of weight pushes: its ends in this process, its figures by hand, its plot."""

from __future__ import annotations

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.push_plot import draw
from benchmarks.push_sides import (
    ADAPTER,
    WHOLE,
    StoreReceiver,
    StoreSender,
    Streamer,
)
from benchmarks.weight_push import WARM_UP, measure_row, summary
from common.config import Lora
from common.push.meeting import Meeting

NUM_BYTES = 20 << 20


@pytest.mark.parametrize("adapter", [False, True])
def test_what_the_sender_sends_the_receiver_takes(adapter: bool) -> None:
    sender = StoreSender(NUM_BYTES, ADAPTER if adapter else WHOLE)
    receiver = StoreReceiver(Lora().model_dump() if adapter else None)
    assert sender.raw() > 0
    publication, tensors = sender.publish()
    manifest, _ = publication
    assert manifest.num_bytes == pytest.approx(NUM_BYTES, rel=0.3)
    stages = receiver.load(publication, tensors)
    assert all(seconds > 0 for seconds in stages.values())


def test_members_of_a_broadcast_meet() -> None:
    """The plain way and ours, a sender and two receivers, with a rest in the last bucket."""
    members = [Streamer(NUM_BYTES, 3 << 20, rank) for rank in range(3)]
    address, port = members[0].place()
    with ThreadPoolExecutor(3) as threads:
        for number, method in enumerate(("raw", "push")):
            meeting = Meeting(address, port, str(number), "gloo", 3, 60.0)
            calls = []
            for member in members:
                calls.append(threads.submit(getattr(member, method), meeting))
            results = [call.result() for call in calls]
    for stages in results:
        assert stages.keys() == {"join_s", "stream_s"}


class FakeSide:
    """A push takes 20 ms, of which it says that all was one stage, and the plain way 10 ms."""

    def __init__(self) -> None:
        self.num_pushes = 0

    async def start(self) -> None:
        """Nothing to make."""

    async def raw(self, num_engines: int) -> float:
        return 0.01

    async def push(self, num_engines: int) -> dict[str, float]:
        self.num_pushes += 1
        await asyncio.sleep(0.02)
        return {"stage_s": 0.02}

    def stop(self) -> None:
        """Nothing to free."""


def test_a_row_compares_the_push_with_the_plain_way() -> None:
    side = FakeSide()
    row = asyncio.run(measure_row(side, 10_000_000, 2, 3))
    assert side.num_pushes == WARM_UP + 3
    # At least 20 ms: 10 MB at 0.5 GB/s or less; the plain way 1 GB/s.
    assert row["push_s"] >= 0.02
    assert 0 < row["gb_per_s"] <= 0.5
    assert row["raw_gb_per_s"] == 1
    assert row["ratio"] == pytest.approx(0.01 / row["push_s"], rel=0.05)
    assert row["stages"] == {"stage_s": 0.02}


def row_of(transport: str, engines: int, push_s: float, ratio: float) -> dict[str, Any]:
    return {
        "transport": transport,
        "gb": 0.5,
        "engines": engines,
        "push_s": push_s,
        "gb_per_s": 0.5 / push_s,
        "raw_gb_per_s": 1.0,
        "raw_s": ratio * push_s,
        "ratio": ratio,
    }


def test_the_summary_says_how_far_the_goals_are(tmp_path: Path) -> None:
    """From one engine to four 1.5 / 1.0 s = 1.5 of the time."""
    rows = [
        row_of("adapter", 1, 1.0, 0.6),
        row_of("adapter", 2, 1.2, 0.5),
        row_of("adapter", 4, 1.5, 0.4),
        row_of("broadcast", 1, 2.0, 0.9),
        row_of("broadcast", 4, 2.0, 0.9),
    ]
    arguments = argparse.Namespace(
        transports=["adapter", "broadcast"], sizes=[0.5], repeats=1
    )
    result = summary(arguments, rows)
    assert result["transports"]["adapter"] == {
        "least_ratio": 0.4,
        "median_ratio": 0.5,
        "goal": 0.5,
        "most_growth": 1.5,
        # 0.6 s with one engine as with four.
        "most_growth_raw": 1.0,
        "growth_goal": 1.3,
    }
    assert result["transports"]["broadcast"]["most_growth"] == 1
    plot = tmp_path / "docs" / "push.svg"
    draw(rows, plot)
    assert "<svg" in plot.read_text()
