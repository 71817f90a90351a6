"""The BDHS job: prompts in, rollout workers over them, a resumable pair set out.

    prompts ─▶ two generate_pairs per worker, sharing the iterator ─▶ Outcome ─▶ Shards ─▶ PairWriter

None waits for another: while one has only its slowest sentences left, the other one keeps their engine busy. What a
prompt gives does not depend on which worker it meets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from actors.bdhs import Generate, Outcome, generate_pairs
from actors.bdhs_stats import note_of, summarise
from actors.similarity import (
    PAPER_ENCODER,
    LexicalSimilarity,
    Similarity,
    make_similarity,
)
from cluster.generate_engines import Engines, ray_engines
from cluster.lanes import all_or_first_error
from cluster.progress import ProgressReport
from cluster.prompt_source import load_prompts, prompt_spec
from cluster.shards import Shards
from common.bdhs_config import BdhsConfig
from common.config import RunConfig
from common.datasets import STATS
from common.errors import UserError
from common.fingerprint import model_hash
from common.overrides import load_config
from common.pair_writer import PairWriter
from common.records import Dropped, Prompt

DEMO_RHO = 0.5
"""For the demo policy's 36 image tokens (ours): trained on whole images, it babbles when more of them are hidden."""
WINDOW = 128
"""Prompts being worked at per worker, at most; as many are lost when the process is killed. Small jobs are shared."""

BLOCK_SIZE = 32
"""Tokens per block of the engine's cache. Sentences of an answer begin alike, and whole blocks are computed once."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to make and where. `prompts` None is the shapes world's training captions."""

    out: Path
    config: RunConfig
    bdhs: BdhsConfig
    similarity: str
    prompts: Path | None
    count: int | None
    seed: int


def job_of(arguments: argparse.Namespace, overrides: Sequence[str]) -> Job:
    """The job a command line asks for (UserError when a value is out of range)."""
    words = [
        "--mixture.online_fraction=1",
        f"--rollout.engine.block_size={BLOCK_SIZE}",
        *overrides,
    ]
    if arguments.model is not None:
        words += ["--model.path", json.dumps(arguments.model)]
    if arguments.workers is not None:
        words += ["--rollout.num_workers", str(arguments.workers)]
    given = {
        "variant": arguments.variant,
        "rho": DEMO_RHO
        if arguments.rho is None and arguments.model is None
        else arguments.rho,
        "max_attempts": arguments.attempts,
        "similarity_threshold": arguments.threshold,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
    }
    if arguments.count is not None and arguments.count < 1:
        raise UserError(f"--count: expected at least 1, got {arguments.count}")
    try:
        bdhs = BdhsConfig(
            **{key: value for key, value in given.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"bdhs.{first['loc'][0]}: {first['msg']}, got {first['input']!r}"
        ) from error
    config = load_config(arguments.preset, words)
    return Job(
        arguments.out,
        config,
        bdhs,
        arguments.similarity,
        arguments.prompts,
        arguments.count,
        arguments.seed,
    )


def run(job: Job, engines: Engines = ray_engines) -> None:
    """Make the set, or what is missing of it, and print how it went."""
    with PairWriter(job.out, spec_of(job)) as writer:
        if writer.complete:
            stats = json.loads((job.out / STATS).read_text())
            print(f"{job.out}: already complete, {stats['num_pairs']} pairs")
            return
        similarity = make_similarity(job.similarity)
        unreadable: list[Dropped] = []
        prompts = load_prompts(
            job.prompts, job.count, job.seed, writer.store, unreadable
        )
        if len(writer.notes) < len(prompts):
            asyncio.run(_generate(job, writer, prompts, similarity, engines))
        notes = [
            *writer.notes,
            *(note_of(Outcome(drop, drop.id)) for drop in unreadable),
        ]
        names = {"variant": job.bdhs.variant, "similarity_measure": similarity.name}
        stats = {**names, **summarise(notes, job.bdhs.max_attempts)}
        writer.finish(stats, [prompt.id for prompt in prompts])
    print_stats(stats)
    print(f"{job.out}: {stats['num_pairs']} pairs")


def spec_of(job: Job) -> dict[str, Any]:
    """All that decides the content of the set, JSON only."""
    model = job.config.model
    return {
        "method": "bdhs",
        **job.bdhs.model_dump(mode="json"),
        "similarity": job.similarity,
        **prompt_spec(job.prompts, job.count),
        "model_hash": model_hash(Path(model.path)),
        "model_dtype": model.dtype,
        "model_max_length": model.max_length,
    }


async def _generate(
    job: Job,
    writer: PairWriter,
    prompts: Sequence[Prompt],
    similarity: Similarity,
    engines: Engines,
) -> None:
    done = {note["id"] for note in writer.notes}
    todo = [prompt for prompt in prompts if prompt.id not in done]
    print(
        f"{job.out}: {len(todo)} of {len(prompts)} prompts to do, starting engines",
        file=sys.stderr,
    )
    async with engines(job.config) as (workers, num_image_tokens):
        queue, window = iter(todo), min(WINDOW, math.ceil(len(todo) / len(workers)))
        halves = (window - window // 2, window // 2)
        with (
            ProgressReport("bdhs", len(prompts), len(done)) as progress,
            Shards(writer) as shards,
        ):

            async def lane(generate: Generate, half: int) -> None:
                async for outcome in generate_pairs(
                    queue,
                    generate,
                    config=job.bdhs,
                    similarity=similarity,
                    num_image_tokens=num_image_tokens,
                    window=half,
                ):
                    shards.add(outcome.result, note_of(outcome))
                    progress.advance(
                        f"prompts, {shards.num_new_pairs / progress.elapsed_s:.1f} pairs/s"
                    )

            await all_or_first_error(
                [lane(generate, half) for half in halves for generate in workers]
            )
            rates = f"{progress.rate:.1f} prompts/s, {shards.num_new_pairs / progress.elapsed_s:.1f} pairs/s"
    print(rates, file=sys.stderr)


def print_stats(stats: Mapping[str, Any]) -> None:
    """How many prompts each attempt settled, and what became of the others."""
    total = max(stats["num_prompts"], 1)
    table = Table(title=f"bdhs ({stats['variant']}), {stats['num_prompts']} prompts")
    for name in ("outcome", "prompts", "share", "cumulative"):
        table.add_column(name, justify="left" if name == "outcome" else "right")
    settled = 0
    for attempt, count in stats["accepted_per_attempt"].items():
        settled += count
        table.add_row(
            f"accepted at attempt {attempt}",
            str(count),
            f"{count / total:.1%}",
            f"{settled / total:.1%}",
        )
    for reason, count in stats["dropped"].items():
        table.add_row(f"dropped: {reason}", str(count), f"{count / total:.1%}", "")
    console = Console()
    console.print(table)
    quantiles = ", ".join(
        f"{float(share):.0%} {value:.2f}"
        for share, value in stats["similarity"].items()
    )
    console.print(
        f"{stats['similarity_measure']} similarity of the pairs: {quantiles or 'none'}",
        highlight=False,
    )
    if stats["similarity_measure"] == LexicalSimilarity.name:
        console.print(
            f"lexical similarity stands in for sentence embeddings; the paper's: --similarity {PAPER_ENCODER}"
        )
    console.print(
        f"image tokens visible: {stats['mean_visible_tokens']:.1f} on average ({stats['visible_frac']:.1%}); "
        f"prompts that needed another attempt: {stats['another_attempt_frac']:.1%}",
        highlight=False,
    )
