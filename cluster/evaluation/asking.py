"""Puts prompts and answers to all engines of one policy, as if they were one engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from cluster.evaluation.chunks import OnProgress, ignore_progress, in_chunks
from cluster.evaluation.kept import GROUPS, SCORES, KeptAnswers
from common.protocols import GenerationRequest
from common.records import Dropped, PreferencePair, Prompt, RolloutGroup, SideLogps

Scored: TypeAlias = tuple[float, ...] | Dropped
"""Token log-probs (nats) of one answer, see `common.protocols.Engine.score`."""


class Answering(Protocol):
    """An engine that holds the policy; a `RolloutClient`."""

    async def generate(
        self,
        requests: Sequence[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]: ...

    async def score(self, answers: Sequence[tuple[Prompt, str]]) -> list[Scored]: ...


class Asker:
    """Whichever engine is free takes the next chunk; results come in the order of what was asked."""

    def __init__(
        self,
        engines: Sequence[Answering],
        kept: KeptAnswers | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        """`kept` holds what was answered before a kill, and what is answered now."""
        self._engines = engines
        self._kept = kept
        self._on_progress = on_progress

    async def generate(
        self,
        name: str,
        requests: Sequence[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]:
        """One group or reason per request, in order; `name` tells the list from others of this policy."""
        calls = [engine.generate for engine in self._engines]
        kept = None
        if self._kept is not None:
            kept = self._kept.section(f"answers/{name}", GROUPS)
        return await in_chunks(calls, requests, self._on_progress, kept)

    async def score(
        self,
        name: str,
        answers: Sequence[tuple[Prompt, str]],
    ) -> list[Scored]:
        """Token log-probs or a reason per answer, in order; `name` as of `generate`."""
        calls = [engine.score for engine in self._engines]
        kept = None
        if self._kept is not None:
            kept = self._kept.section(f"scores/{name}", SCORES)
        return await in_chunks(calls, answers, self._on_progress, kept)

    async def score_pairs(
        self,
        name: str,
        pairs: Sequence[PreferencePair],
    ) -> tuple[dict[str, SideLogps], list[Dropped]]:
        """Log-probs by pair id, and the answers that have none."""
        answers: list[tuple[Prompt, str]] = []
        for pair in pairs:
            answers.append((pair.prompt, pair.chosen.text))
            answers.append((pair.prompt, pair.rejected.text))
        scores = await self.score(name, answers)
        # Chosen and rejected alternate, as they were asked.
        chosen_scores = scores[0::2]
        rejected_scores = scores[1::2]
        logps: dict[str, SideLogps] = {}
        scored = zip(pairs, chosen_scores, rejected_scores, strict=True)
        for pair, chosen, rejected in scored:
            if isinstance(chosen, Dropped) or isinstance(rejected, Dropped):
                continue
            logps[pair.id] = SideLogps(
                chosen=sum(chosen),
                rejected=sum(rejected),
                chosen_tokens=len(chosen),
                rejected_tokens=len(rejected),
            )
        dropped = [result for result in scores if isinstance(result, Dropped)]
        return logps, dropped
