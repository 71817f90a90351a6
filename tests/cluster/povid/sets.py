"""Sets that `python -m cluster.generate povid` makes with an endpoint that is a function."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.data.datasets import PAIRS, STATS, read_table
from common.data.rows import PAIR_SCHEMA
from tests.chat_server import Answer, Asked, ChatServer, completion

TRUE = re.compile(r"True answer:\n(.*?)\n", re.DOTALL)


def rewrite(asked: Asked) -> Answer:
    """What an obedient model does, the same for the same question."""
    text = true_answer(asked)
    return completion(f"<rewritten>{text} There is a small dog.</rewritten>")


def true_answer(asked: Asked) -> str:
    """The answer that the endpoint is asked to spoil."""
    hit = TRUE.search(asked.text)
    assert hit is not None
    return hit[1]


@contextmanager
def answering(script: Callable[[Asked], Answer] = rewrite) -> Iterator[ChatServer]:
    with ChatServer(script) as server:
        yield server


def words(out: Path, url: str, options: str = "") -> list[str]:
    """The command line of a set that the endpoint at `url` rewrites; `options` as one types them."""
    line = f"--endpoint {url} --model-name writer --retries 1 {options}"
    return ["povid", "--out", str(out), *line.split()]


def from_file(folder: Path) -> str:
    """The option that reads the prompts of a folder."""
    return f"--prompts {folder}"


def stats_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / STATS).read_text()))


def rows_of(out: Path) -> list[Any]:
    return list(read_table(out / PAIRS, PAIR_SCHEMA).to_pylist())
