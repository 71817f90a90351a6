"""What the jobs that generate pairs do alike: a resumable set, its prompts, and the report at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from cluster.jobs.prompt_source import load_prompts
from common.config.jobs import GenerateConfig
from common.data.datasets import STATS
from common.data.pair_writer import PairWriter
from common.records import Dropped, Prompt

Stats: TypeAlias = dict[str, Any]
MakePairs: TypeAlias = Callable[
    [PairWriter, Sequence[Prompt], Sequence[Dropped]], Stats
]
"""Does the prompts that have no note yet; gets the rows that are no prompt too. Returns the statistics of the set."""


def make_pair_set(
    config: GenerateConfig,
    spec: Mapping[str, Any],
    make_pairs: MakePairs,
    print_stats: Callable[[Stats], None],
) -> None:
    """Make the set, or what is missing of it, and print how it went (UserError as `PairWriter`)."""
    out = config.generate.out
    with PairWriter(out, spec) as writer:
        if writer.complete:
            stats = json.loads((out / STATS).read_text())
            print(f"{out}: already complete, {stats['num_pairs']} pairs")
            return
        unreadable: list[Dropped] = []
        prompts = load_prompts(config, writer.store, unreadable)
        stats = make_pairs(writer, prompts, unreadable)
        # Pairs are put in the order of their prompts, whatever order they were made in.
        order = [prompt.id for prompt in prompts]
        writer.finish(stats, order)
    print_stats(stats)
    print(f"{out}: {stats['num_pairs']} pairs")
