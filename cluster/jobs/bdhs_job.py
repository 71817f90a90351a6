"""The BDHS job: prompts in, rollout workers over them, a resumable pair set out.

    prompts ─▶ two generate_pairs per worker, sharing the iterator ─▶ Outcome ─▶ Shards ─▶ PairWriter

The tasks do not wait for one another: while one of a worker has only its slowest sentences left, the other keeps the
engine busy. What becomes of a prompt does not depend on the worker that does it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.bdhs.sampling import Outcome, generate_pairs
from actors.bdhs.similarity import (
    PAPER_ENCODER,
    LexicalSimilarity,
    Similarity,
    make_similarity,
)
from actors.bdhs.stats import note_of, summarise
from cluster.jobs.engines import Engines, ray_engines
from cluster.jobs.event_loop import run_async
from cluster.jobs.pair_job import Stats, make_pair_set
from cluster.jobs.prompt_source import prompt_spec
from cluster.jobs.shards import Shards
from cluster.progress import ProgressReport
from cluster.runtime.concurrent_tasks import run_all
from common.chat import encoder_of
from common.config import SHAPES_POLICY, OnlineBdhs
from common.config.jobs import BdhsJobConfig
from common.data.pair_writer import PairWriter
from common.fingerprint import model_hash
from common.records import Dropped, Prompt

DEMO_RHO = 0.5
"""For the demo policy's 36 image tokens (ours): trained on whole images, it babbles when more of them are hidden."""
WINDOW = 128
"""Prompts in flight per worker, at most: these are done again after a kill. Small jobs are divided among workers."""


def settings_of(config: BdhsJobConfig) -> OnlineBdhs:
    """`rollout.bdhs` with what it leaves open: the seed is the run's, and rho fits the demo policy."""
    settings = config.rollout.bdhs
    chosen: dict[str, Any] = {}
    if "seed" not in settings.model_fields_set:
        chosen["seed"] = config.run.seed
    if "rho" not in settings.model_fields_set and config.model.path == SHAPES_POLICY:
        chosen["rho"] = DEMO_RHO
    return settings.model_copy(update=chosen)


def spec_of(config: BdhsJobConfig) -> dict[str, Any]:
    """All that decides the content of the set, JSON only."""
    model = config.model
    return {
        "method": "bdhs",
        **settings_of(config).model_dump(mode="json"),
        **prompt_spec(config),
        "model_hash": model_hash(Path(model.path)),
        "model_dtype": model.dtype,
        "model_max_length": model.max_length,
    }


def run(config: BdhsJobConfig, engines: Engines = ray_engines) -> None:
    """Make the set, or what is missing of it, and print how it went."""
    settings = settings_of(config)

    def make_pairs(
        writer: PairWriter, prompts: Sequence[Prompt], unreadable: Sequence[Dropped]
    ) -> Stats:
        similarity = make_similarity(settings.similarity)
        if len(writer.notes) < len(prompts):
            run_async(_generate(config, writer, prompts, similarity, engines))
        notes = list(writer.notes)
        # Rows that are no prompt have no note on disk: they are read again by every run.
        for dropped in unreadable:
            outcome = Outcome(dropped, dropped.id)
            notes.append(note_of(outcome))
        return {
            "variant": settings.variant,
            "similarity_measure": similarity.name,
            **summarise(notes, settings.max_attempts),
        }

    # Opened when there is a reference to read, and once.
    encoder = cache(partial(encoder_of, config.model))

    def strip(reference: str) -> str:
        return encoder().without_end_mark(reference)

    make_pair_set(config, spec_of(config), make_pairs, print_stats, strip)


async def _generate(
    config: BdhsJobConfig,
    writer: PairWriter,
    prompts: Sequence[Prompt],
    similarity: Similarity,
    engines: Engines,
) -> None:
    """Generate pairs for the prompts that have no note yet."""
    done = {note["id"] for note in writer.notes}
    todo = [prompt for prompt in prompts if prompt.id not in done]
    print(
        f"{writer.directory}: {len(todo)} of {len(prompts)} prompts to do, starting engines",
        file=sys.stderr,
    )
    async with engines(config) as (workers, num_image_tokens):
        queue = iter(todo)
        window = min(WINDOW, math.ceil(len(todo) / len(workers)))
        pairs_of = partial(
            generate_pairs,
            queue,
            config=settings_of(config),
            similarity=similarity,
            num_image_tokens=num_image_tokens,
        )
        with (
            ProgressReport("bdhs", len(prompts), len(done)) as progress,
            Shards(writer) as shards,
        ):

            def record(outcome: Outcome) -> None:
                shards.add(outcome.result, note_of(outcome))
                pairs_per_s = shards.num_new_pairs / progress.elapsed_s
                progress.advance(f"prompts, {pairs_per_s:.1f} pairs/s")

            # Two tasks per worker share its window: one of them always has requests for the engine. The first tasks of
            # all workers come first, so that a small job reaches every worker.
            second_half = window // 2
            first_half = window - second_half
            tasks = []
            for size in (first_half, second_half):
                for generate in workers:
                    outcomes = pairs_of(generate, window=size)
                    tasks.append(_record_all(outcomes, record))
            await run_all(tasks)
            pairs_per_s = shards.num_new_pairs / progress.elapsed_s
            rates = f"{progress.rate:.1f} prompts/s, {pairs_per_s:.1f} pairs/s"
    # Below the bar, which is gone by now.
    print(rates, file=sys.stderr)


async def _record_all(
    outcomes: AsyncIterator[Outcome], record: Callable[[Outcome], None]
) -> None:
    async for outcome in outcomes:
        record(outcome)


def print_stats(stats: Mapping[str, Any]) -> None:
    """Print how many prompts each attempt settled, what became of the others, and how alike the pairs are."""
    console = Console()
    console.print(_outcome_table(stats))
    quantiles: list[str] = []
    for share, value in stats["similarity"].items():
        quantiles.append(f"{float(share):.0%} {value:.2f}")
    shown = ", ".join(quantiles) or "none"
    measure = stats["similarity_measure"]
    console.print(f"{measure} similarity of the pairs: {shown}", highlight=False)
    if measure == LexicalSimilarity.name:
        console.print(
            f"lexical similarity stands in for sentence embeddings; the paper's: --similarity {PAPER_ENCODER}"
        )
    console.print(
        f"image tokens visible: {stats['mean_visible_tokens']:.1f} on average ({stats['visible_frac']:.1%}); "
        f"prompts that needed another attempt: {stats['another_attempt_frac']:.1%}",
        highlight=False,
    )


def _outcome_table(stats: Mapping[str, Any]) -> Table:
    num_prompts = stats["num_prompts"]
    # An empty set has shares of 0, not an error.
    total = max(num_prompts, 1)
    table = Table(title=f"bdhs ({stats['variant']}), {num_prompts} prompts")
    table.add_column("outcome")
    for name in ("prompts", "share", "cumulative"):
        table.add_column(name, justify="right")
    num_settled = 0
    for attempt, count in stats["accepted_per_attempt"].items():
        num_settled += count
        outcome = f"accepted at attempt {attempt}"
        share = f"{count / total:.1%}"
        cumulative = f"{num_settled / total:.1%}"
        table.add_row(outcome, str(count), share, cumulative)
    for reason, count in stats["dropped"].items():
        share = f"{count / total:.1%}"
        table.add_row(f"dropped: {reason}", str(count), share, "")
    return table
