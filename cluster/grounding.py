"""Pairs for the scorecard's grounding gate, and what an engine's policy makes of them. Knows neither Ray nor vLLM."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from cluster.measure import CHUNK, SEED
from common.config import Evaluation, RunConfig, ShapesPrompts
from common.datasets import read_pairs
from common.images import ImageStore
from common.povid_config import ErrorKind
from common.records import Dropped, PreferencePair, Prompt, Response, SideLogps
from common.shapes.corrupter import corrupt
from learner.grounding import views
from reward.grounding import Grounding, make_grounding
from reward.scorecard import Answers, Scorecard

Score: TypeAlias = Callable[
    [list[tuple[Prompt, str]]], Awaitable[list[tuple[float, ...] | Dropped]]
]
"""Token log-probs of answers by the policy that is measured, see `common.protocols.Engine.score`."""

KINDS: tuple[ErrorKind, ...] = ("entity", "attribute", "relation")


@dataclass(frozen=True, slots=True)
class Gate:
    """Held-out pairs by view (`true`, `blank`, `shuffled`), or why there are none."""

    shown: Mapping[str, Sequence[PreferencePair]]
    missing: str | None = None

    @property
    def num_scored(self) -> int:
        """Answers to be scored: two per pair and view."""
        return 2 * sum(map(len, self.shown.values()))


def grounding_gate(
    config: RunConfig, captions: Sequence[Prompt], store: ImageStore
) -> Gate:
    """`evaluation.pairs`, or in the shapes world true captions of these scenes against those corrupted by rule.

    Args:
        captions: caption prompts of scenes that nobody trains on.
        store: takes grey pictures.

    Raises:
        UserError: `evaluation.pairs` is no pair set.
    """
    settings = config.evaluation
    if not settings.grounding_pairs:
        return Gate({}, "evaluation.grounding_pairs is 0")
    if settings.pairs is not None:
        pairs = read_pairs(Path(settings.pairs), [])
        none = f"evaluation.pairs {settings.pairs} holds no pair with images"
    elif isinstance(config.data.prompts, ShapesPrompts):
        pairs = [
            pair
            for prompt, kind in _in_turn(captions)
            if (pair := corrupted_pair(prompt, kind))
        ]
        none = "there are no caption scenes"
    else:
        return Gate(
            {},
            "no rule corrupts answers to data.prompts; name a held-out pair set as evaluation.pairs",
        )
    # Texts, not tokens: another tokenizer may have made those of a data set.
    read = [
        replace(p, chosen=Response(p.chosen.text), rejected=Response(p.rejected.text))
        for p in pairs
    ]
    shown = views(read[: settings.grounding_pairs], store)
    return Gate(shown) if shown else Gate({}, none)


def corrupted_pair(prompt: Prompt, kind: ErrorKind) -> PreferencePair | None:
    """The prompt's reference over the same text with an error of this kind, or the next one that the scene allows."""
    first = KINDS.index(kind)
    for each in (*KINDS[first:], *KINDS[:first]):
        wrong = corrupt(prompt, each, SEED)
        if isinstance(wrong, str):
            id = f"{prompt.id}/{each}"
            return PreferencePair(
                id,
                prompt,
                Response(prompt.reference or ""),
                Response(wrong),
                "corrupted",
            )
    return None


def _in_turn(prompts: Sequence[Prompt]) -> list[tuple[Prompt, ErrorKind]]:
    return [(prompt, KINDS[index % len(KINDS)]) for index, prompt in enumerate(prompts)]


async def with_grounding(
    found: tuple[Scorecard, Answers],
    score: Score,
    gate: Gate,
    baseline: Answers | None,
    settings: Evaluation,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[Scorecard, Answers]:
    """The scorecard with its grounding gate, and the answers with the log-probs behind it.

    Args:
        score: of the policy that gave `found`.
        baseline: answers of the start policy, with its log-probs; None says that this is the start policy.
    """
    card, answers = found
    if gate.missing is not None:
        return card.model_copy(
            update={"grounding": Grounding(missing=gate.missing)}
        ), answers
    logps: dict[str, dict[str, SideLogps]] = {}
    dropped: list[Dropped] = []
    for view, pairs in gate.shown.items():
        logps[view], lost = await _score_view(score, pairs, on_progress)
        dropped += lost
    start = None if baseline is None else baseline.grounding
    grounding = make_grounding(
        logps, start, settings.grounding_gain, settings.bootstrap_samples, dropped
    )
    return card.model_copy(update={"grounding": grounding}), replace(
        answers, grounding=logps
    )


async def _score_view(
    score: Score, pairs: Sequence[PreferencePair], on_progress: Callable[[int], None]
) -> tuple[dict[str, SideLogps], list[Dropped]]:
    """Log-probs by pair id, and the answers that have none."""
    sides = list(
        chain.from_iterable((pair.chosen.text, pair.rejected.text) for pair in pairs)
    )
    asked = [(pairs[index // 2].prompt, text) for index, text in enumerate(sides)]
    found: list[tuple[float, ...] | Dropped] = []
    for start in range(0, len(asked), CHUNK):
        chunk = asked[start : start + CHUNK]
        found += await score(chunk)
        on_progress(len(chunk))
    logps: dict[str, SideLogps] = {}
    for pair, chosen, rejected in zip(pairs, found[::2], found[1::2], strict=True):
        if not isinstance(chosen, Dropped) and not isinstance(rejected, Dropped):
            logps[pair.id] = SideLogps(
                sum(chosen), sum(rejected), len(chosen), len(rejected)
            )
    return logps, [result for result in found if isinstance(result, Dropped)]
