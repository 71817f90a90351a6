"""The job of POVID's first stage: prompts with true answers in, an endpoint or rules over them, a pair set out.

    rows ─▶ `concurrency` lanes, each one request at a time ─▶ Injection ─▶ FailureGate ─▶ Shards ─▶ PairWriter

Replies of the endpoint are kept in `replies.jsonl` of the folder as soon as they come, so that a row that a kill took
away is made again without asking again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from actors.chat_endpoint import ChatEndpoint
from actors.injection import (
    EndpointInjector,
    Injection,
    Injector,
    Row,
    rows_of,
)
from actors.injection_prompt import templates_hash
from actors.injection_stats import note_of, summarise
from actors.shapes_rules import RulesInjector
from cluster.failure_gate import SILENT_IN_A_ROW, FailureGate
from cluster.lanes import all_or_first_error
from cluster.progress import ProgressReport
from cluster.prompt_source import load_prompts, prompt_spec
from cluster.shards import Shards
from common.datasets import STATS
from common.errors import UserError
from common.pair_writer import PairWriter
from common.povid_config import PovidConfig
from common.records import Dropped

REPLIES = "replies.jsonl"
_CONTENT_OF_ENDPOINT = {"model", "send_image", "temperature", "top_p", "max_tokens"}
_ENDPOINT_FLAGS = {
    "endpoint": "base_url",
    "model_name": "model",
    "api_key_env": "api_key_env",
    "temperature": "temperature",
    "max_tokens": "max_tokens",
    "max_tokens_key": "max_tokens_key",
    "concurrency": "concurrency",
    "timeout": "timeout_s",
    "retries": "max_retries",
    "price_in": "price_in",
    "price_out": "price_out",
}


@dataclass(frozen=True, slots=True)
class Job:
    """What to make and where. `prompts` None is the shapes world's training captions."""

    out: Path
    config: PovidConfig
    prompts: Path | None
    count: int | None


def job_of(arguments: argparse.Namespace, rest: Sequence[str]) -> Job:
    """The job a command line asks for (UserError when a value is out of range)."""
    if rest:
        raise UserError(f"expected known arguments, got {rest[0]!r}; see --help")
    if (arguments.endpoint is None) == (arguments.corrupter is None):
        raise UserError(
            "expected either --endpoint URL --model-name NAME or --corrupter rules; give one of them"
        )
    if arguments.endpoint is not None and arguments.model_name is None:
        raise UserError(
            "--model-name: expected which model of the endpoint to ask, got nothing; name one"
        )
    if arguments.count is not None and arguments.count < 1:
        raise UserError(f"--count: expected at least 1, got {arguments.count}")
    given: dict[str, Any] = {"every_kind": arguments.every_kind, "seed": arguments.seed}
    if arguments.kinds is not None:
        given["kinds"] = [
            word.strip() for word in arguments.kinds.split(",") if word.strip()
        ]
    if arguments.max_length_ratio is not None:
        given["max_length_ratio"] = arguments.max_length_ratio
    if arguments.endpoint is not None:
        flags = {key: getattr(arguments, flag) for flag, key in _ENDPOINT_FLAGS.items()}
        given["endpoint"] = {
            key: value for key, value in flags.items() if value is not None
        }
        given["endpoint"]["send_image"] = arguments.send_image
    try:
        config = PovidConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        # A refused address may hold credentials: it is not repeated.
        got = "" if key == "endpoint.base_url" else f", got {first['input']!r}"
        raise UserError(
            f"povid.{key}: {first['msg'].removeprefix('Value error, ')}{got}"
        ) from error
    return Job(arguments.out, config, arguments.prompts, arguments.count)


def run(job: Job) -> None:
    """Make the set, or what is missing of it, and print how it went."""
    with PairWriter(job.out, spec_of(job)) as writer:
        if writer.complete:
            stats = json.loads((job.out / STATS).read_text())
            print(f"{job.out}: already complete, {stats['num_pairs']} pairs")
            return
        unreadable: list[Dropped] = []
        prompts = load_prompts(
            job.prompts, job.count, job.config.seed, writer.store, unreadable
        )
        rows = [row for prompt in prompts for row in rows_of(prompt, job.config)]
        usage = asyncio.run(_inject(job, writer, rows))
        notes = [
            *writer.notes,
            *(note_of(Injection(drop.id, None, drop)) for drop in unreadable),
        ]
        stats = {
            "num_prompts": len(prompts) + len(unreadable),
            **summarise(notes),
            **usage,
        }
        writer.finish(stats, [prompt.id for prompt in prompts])
    print_stats(stats)
    print(f"{job.out}: {stats['num_pairs']} pairs")


def spec_of(job: Job) -> dict[str, Any]:
    """All that decides the content of the set, JSON only. Not where the endpoint is, nor how it is asked."""
    config = job.config
    writer: dict[str, Any] = {"corrupter": "rules"}
    if config.endpoint is not None:
        asked = config.endpoint.model_dump(mode="json", include=_CONTENT_OF_ENDPOINT)
        writer = {"corrupter": "endpoint", "templates": templates_hash(), **asked}
    return {
        "method": "povid",
        **writer,
        **config.model_dump(mode="json", exclude={"endpoint"}),
        **prompt_spec(job.prompts, job.count),
    }


async def _inject(job: Job, writer: PairWriter, rows: Sequence[Row]) -> dict[str, Any]:
    """Do the rows that have no note yet. Returns the usage of the endpoint over all runs, empty for rules."""
    done = {note["id"] for note in writer.notes}
    todo = iter([row for row in rows if row.id not in done])
    print(
        f"{job.out}: {len(rows) - len(done)} of {len(rows)} rows to do", file=sys.stderr
    )
    async with _injector(job) as (injector, endpoint, num_lanes):
        with (
            ProgressReport("povid", len(rows), len(done)) as progress,
            Shards(writer) as shards,
        ):
            worked = any(note["dropped"] is None for note in writer.notes)
            gate = FailureGate(
                lambda injection: shards.add(injection.result, note_of(injection)),
                worked,
            )
            # Few lanes until the endpoint is seen to work: many quick refusals would outrun its first slow reply.
            all_lanes = asyncio.Event()

            async def lane(number: int) -> None:
                if number >= SILENT_IN_A_ROW:
                    await all_lanes.wait()
                for row in todo:
                    gate.add(await injector(row))
                    progress.advance(
                        f"rows, {shards.num_new_pairs / progress.elapsed_s:.1f} pairs/s"
                    )
                    if gate.worked:
                        all_lanes.set()
                all_lanes.set()

            await all_or_first_error([lane(number) for number in range(num_lanes)])
            gate.close()
        return {} if endpoint is None else endpoint.usage()


@asynccontextmanager
async def _injector(
    job: Job,
) -> AsyncIterator[tuple[Injector, ChatEndpoint | None, int]]:
    """What injects, the endpoint behind it, and how many rows it takes at a time."""
    config = job.config
    if config.endpoint is None:
        yield RulesInjector(config), None, 1
    else:
        async with ChatEndpoint(config.endpoint, job.out / REPLIES) as endpoint:
            yield (
                EndpointInjector(config, endpoint),
                endpoint,
                config.endpoint.concurrency,
            )


def print_stats(stats: Mapping[str, Any]) -> None:
    """What became of the rows of each kind, why rows were dropped, and what the endpoint was paid."""
    console = Console()
    table = Table(title=f"povid, {stats['num_rows']} rows")
    for name in ("kind", "pairs", "dropped"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind, num_pairs in stats["pairs_per_kind"].items():
        table.add_row(kind, str(num_pairs), str(stats["dropped_per_kind"][kind]))
    console.print(table)
    for reason, count in stats["dropped"].items():
        console.print(
            f"dropped, {reason}: {count}, such as: {stats['examples'][reason]}",
            highlight=False,
            markup=False,
        )
    if "num_replies" in stats:
        cost = "" if stats["cost"] is None else f", cost {stats['cost']:.4f}"
        unknown = stats["num_replies_without_usage"]
        console.print(
            f"{stats['num_replies']} replies, {stats['num_cache_hits']} rows from earlier ones; "
            f"{stats['num_prompt_tokens']} prompt and {stats['num_completion_tokens']} completion tokens{cost}"
            + (f"; {unknown} replies gave no token count" if unknown else ""),
            highlight=False,
        )
