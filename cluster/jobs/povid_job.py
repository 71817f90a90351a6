"""The job of POVID's first stage: prompts with true answers in, an endpoint or rules over them, a pair set out.

    rows ─▶ `concurrency` tasks, each one request at a time ─▶ Injection ─▶ FailureGate ─▶ Shards ─▶ PairWriter

Every reply of the endpoint is written to `replies.jsonl` of the folder as soon as it comes. A row that a kill has lost
is made from it again, and the endpoint is not asked twice.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.povid.injection import (
    EndpointInjector,
    Injection,
    Injector,
    Row,
    rows_of,
)
from actors.povid.prompt import templates_hash
from actors.povid.stats import note_of, summarise
from actors.povid.worlds import RulesInjector
from cluster.jobs.event_loop import run_async
from cluster.jobs.failure_gate import SILENT_IN_A_ROW, FailureGate
from cluster.jobs.pair_job import Stats, make_pair_set
from cluster.jobs.prompt_source import prompt_spec
from cluster.jobs.shards import Shards
from cluster.progress import ProgressReport
from cluster.runtime.concurrent_tasks import run_all
from common.config.jobs import PovidJobConfig, PovidSettings
from common.data.pair_writer import PairWriter
from common.endpoint.chat_endpoint import ChatEndpoint
from common.records import Dropped, Prompt

REPLIES = "replies.jsonl"
_CONTENT_OF_ENDPOINT = {"model", "send_image", "temperature", "top_p", "max_tokens"}


def settings_of(config: PovidJobConfig) -> PovidSettings:
    """The `povid` section, with the run's seed unless it has one of its own."""
    if "seed" in config.povid.model_fields_set:
        return config.povid
    return config.povid.model_copy(update={"seed": config.run.seed})


def run(config: PovidJobConfig) -> None:
    """Make the set, or what is missing of it, and print how it went."""
    settings = settings_of(config)

    def make_pairs(
        writer: PairWriter, prompts: Sequence[Prompt], unreadable: Sequence[Dropped]
    ) -> Stats:
        rows: list[Row] = []
        for prompt in prompts:
            rows += rows_of(prompt, settings)
        usage = run_async(_inject(settings, writer, rows))
        notes = list(writer.notes)
        # Rows that are no prompt have no note on disk: they are read again by every run.
        for dropped in unreadable:
            injection = Injection(dropped.id, None, dropped)
            notes.append(note_of(injection))
        num_prompts = len(prompts) + len(unreadable)
        return {"num_prompts": num_prompts, **summarise(notes), **usage}

    make_pair_set(config, spec_of(config), make_pairs, print_stats)


def spec_of(config: PovidJobConfig) -> dict[str, Any]:
    """All that decides the content of the set, JSON only. Not where the endpoint is, nor how it is asked."""
    settings = settings_of(config)
    rewriter: dict[str, Any] = {"corrupter": "rules"}
    if settings.endpoint is not None:
        rewriter = {
            "corrupter": "endpoint",
            "templates": templates_hash(),
            **settings.endpoint.model_dump(mode="json", include=_CONTENT_OF_ENDPOINT),
        }
    return {
        "method": "povid",
        **rewriter,
        **settings.model_dump(mode="json", exclude={"endpoint", "corrupter"}),
        **prompt_spec(config),
    }


async def _inject(
    settings: PovidSettings, writer: PairWriter, rows: Sequence[Row]
) -> dict[str, Any]:
    """Rewrite the rows that have no note yet. Returns the usage of the endpoint over all runs, {} for rules."""
    done: set[str] = set()
    worked = False
    for note in writer.notes:
        done.add(note["id"])
        if note["dropped"] is None:
            worked = True
    todo = [row for row in rows if row.id not in done]
    queue = iter(todo)
    print(
        f"{writer.directory}: {len(todo)} of {len(rows)} rows to do",
        file=sys.stderr,
    )
    async with _injector(settings, writer) as (injector, endpoint, concurrency):
        with (
            ProgressReport("povid", len(rows), len(done)) as progress,
            Shards(writer) as shards,
        ):

            def record(injection: Injection) -> None:
                shards.add(injection.result, note_of(injection))

            gate = FailureGate(record, worked)
            # Few requests at a time until the endpoint is seen to work: many quick refusals would outrun its first
            # slow reply.
            may_all_ask = asyncio.Event()

            async def work(number: int) -> None:
                if number >= SILENT_IN_A_ROW:
                    await may_all_ask.wait()
                for row in queue:
                    gate.add(await injector(row))
                    pairs_per_s = shards.num_new_pairs / progress.elapsed_s
                    progress.advance(f"rows, {pairs_per_s:.1f} pairs/s")
                    if gate.worked:
                        may_all_ask.set()
                may_all_ask.set()

            tasks = [work(number) for number in range(concurrency)]
            await run_all(tasks)
            gate.close()
        return {} if endpoint is None else endpoint.usage()


@asynccontextmanager
async def _injector(
    settings: PovidSettings, writer: PairWriter
) -> AsyncIterator[tuple[Injector, ChatEndpoint | None, int]]:
    """What rewrites the answers, the endpoint behind it, and how many rows it takes at a time."""
    if settings.endpoint is None:
        yield RulesInjector(settings), None, 1
        return
    replies = writer.directory / REPLIES
    async with ChatEndpoint(settings.endpoint, replies) as endpoint:
        injector = EndpointInjector(settings, endpoint)
        yield injector, endpoint, settings.endpoint.concurrency


def print_stats(stats: Mapping[str, Any]) -> None:
    """Print what became of the rows of each kind, why rows were dropped, and what the endpoint cost."""
    console = Console()
    table = Table(title=f"povid, {stats['num_rows']} rows")
    table.add_column("kind")
    for name in ("pairs", "dropped"):
        table.add_column(name, justify="right")
    for kind, num_pairs in stats["pairs_per_kind"].items():
        num_dropped = stats["dropped_per_kind"][kind]
        table.add_row(kind, str(num_pairs), str(num_dropped))
    console.print(table)
    for reason, count in stats["dropped"].items():
        # Without markup: the example is a reply of the endpoint.
        line = f"dropped, {reason}: {count}, such as: {stats['examples'][reason]}"
        console.print(line, highlight=False, markup=False)
    if "num_replies" in stats:
        console.print(_usage_line(stats), highlight=False)


def _usage_line(stats: Mapping[str, Any]) -> str:
    """Replies, tokens and cost in one line."""
    line = (
        f"{stats['num_replies']} replies, {stats['num_cache_hits']} rows from earlier ones; "
        f"{stats['num_prompt_tokens']} prompt and {stats['num_completion_tokens']} completion tokens"
    )
    if stats["cost"] is not None:
        line += f", cost {stats['cost']:.4f}"
    unknown = stats["num_replies_without_usage"]
    if unknown:
        line += f"; {unknown} replies gave no token count"
    return line
