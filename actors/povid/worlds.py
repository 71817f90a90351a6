"""POVID's errors by rule, with no language model to ask: each rendered world's plug-in knows its own."""

from __future__ import annotations

import asyncio

from actors.povid.injection import Injection, Row, pair_of, refusal
from actors.povid.shapes_rules import shapes_answer
from actors.povid.tabletop_rules import tabletop_answer
from common.config.povid import PovidConfig


class RulesInjector:
    """Injects errors by rule into prompts whose truth is a scene of a rendered world, or the answer to a question."""

    def __init__(self, config: PovidConfig) -> None:
        self._config = config

    async def __call__(self, row: Row) -> Injection:
        # In a thread: it reads image files, which would hold up the event loop.
        refused = await asyncio.to_thread(refusal, row, self._config)
        if refused is not None:
            return Injection(row.id, row.kind, refused)
        seed = self._config.seed
        answer = tabletop_answer(row.prompt, row.kind, seed)
        if answer is None:
            answer = shapes_answer(row.prompt, row.kind, seed)
        return Injection(row.id, row.kind, pair_of(row, answer))
