"""The shapes world's plug-in of this room: POVID's errors by rule, with no language model to ask."""

from __future__ import annotations

import asyncio

from actors.povid.injection import Injection, Row, pair_of, refusal
from common.config.povid import PovidConfig
from common.shapes.corrupter import corrupt


class RulesInjector:
    """Injects errors by rule into prompts whose truth is a shapes scene or the answer to a question about one."""

    def __init__(self, config: PovidConfig) -> None:
        self._config = config

    async def __call__(self, row: Row) -> Injection:
        # In a thread: it reads image files, which would hold up the event loop.
        refused = await asyncio.to_thread(refusal, row, self._config)
        if refused is not None:
            return Injection(row.id, row.kind, refused)
        answer = corrupt(row.prompt, row.kind, self._config.seed)
        return Injection(row.id, row.kind, pair_of(row, answer))
