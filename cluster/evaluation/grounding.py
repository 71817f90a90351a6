"""The scorecard's grounding gate: its held-out pairs, and how an engine's policy ranks them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cluster.evaluation.chunks import OnProgress, ignore_progress, in_chunks
from common.config import Evaluation
from common.data import images
from common.data.datasets import read_pairs
from common.data.image_conditions import CONDITIONS, Condition
from common.data.images import ImageStore
from common.errors import Refused
from common.evaluation import ConditionLogps, TaskPrompts
from common.protocols import Suite
from common.records import Dropped, PreferencePair, Prompt, Response, SideLogps
from common.row_faults import drop_report
from learner.grounding import under_conditions
from reward.suites.grounding import Grounding, make_grounding

Scored: TypeAlias = tuple[float, ...] | Dropped
Score: TypeAlias = Callable[[Sequence[tuple[Prompt, str]]], Awaitable[list[Scored]]]
"""Token log-probs of answers by the policy that is measured, see `common.protocols.Engine.score`."""

PairLogps: TypeAlias = dict[Condition, dict[str, SideLogps]]


@dataclass(frozen=True, slots=True)
class Gate:
    """Held-out pairs under every image condition, or why there are none; `dropped` are rows that are no pair."""

    pairs: Mapping[Condition, Sequence[PreferencePair]]
    missing: str | None = None
    dropped: Sequence[Dropped] = ()

    @property
    def num_answers(self) -> int:
        """Answers to be scored: two per pair and condition."""
        num_pairs = sum(map(len, self.pairs.values()))
        return 2 * num_pairs


def grounding_gate(
    settings: Evaluation,
    suites: Sequence[tuple[Suite, TaskPrompts]],
    store: ImageStore,
) -> Gate:
    """The pairs of `evaluation.pairs`, or those of the first suite that has held-out pairs.

    Args:
        suites: with their prompts of a split that nobody trains on.
        store: takes grey pictures.

    Raises:
        UserError: `evaluation.pairs` is no pair set.
    """
    limit = settings.grounding_pairs
    if limit == 0:
        return Gate({}, missing="evaluation.grounding_pairs is 0")
    dropped: list[Dropped] = []
    if settings.pairs is not None:
        pairs = read_pairs(Path(settings.pairs), dropped)[:limit]
        reason = f"evaluation.pairs {settings.pairs} holds no pair with images"
    else:
        pairs = _suite_pairs(suites, limit)
        reason = (
            "no suite of evaluation.suites has held-out pairs; name a held-out pair set "
            "as evaluation.pairs"
        )
    texts = [_as_text(pair) for pair in pairs]
    by_condition = _under_every_condition(texts, store)
    dropped += _unreadable(texts, by_condition.get("true", ()))
    if not by_condition:
        if dropped:
            reason += f"; dropped {drop_report(dropped)}"
        return Gate({}, missing=reason)
    return Gate(by_condition, dropped=dropped)


def _unreadable(
    pairs: Sequence[PreferencePair], shown: Sequence[PreferencePair]
) -> list[Dropped]:
    """Why pairs with images are not among those that can be shown."""
    shown_ids = {pair.id for pair in shown}
    dropped: list[Dropped] = []
    for pair in pairs:
        if pair.id in shown_ids:
            continue
        try:
            for ref in pair.prompt.images:
                images.read(ref)
        except Refused as error:
            dropped.append(Dropped(pair.id, error.reason, str(error)))
    return dropped


def _under_every_condition(
    pairs: Sequence[PreferencePair], store: ImageStore
) -> dict[Condition, Sequence[PreferencePair]]:
    """The pairs as they are, over a grey picture, and over another pair's; conditions without any pair are left out."""
    shown = under_conditions(pairs, store)
    # In the order of CONDITIONS: the true picture comes first everywhere.
    by_condition: dict[Condition, Sequence[PreferencePair]] = {}
    for condition in CONDITIONS:
        if condition in shown:
            by_condition[condition] = shown[condition]
    return by_condition


def _suite_pairs(
    suites: Sequence[tuple[Suite, TaskPrompts]], limit: int
) -> list[PreferencePair]:
    """Pairs of the first suite that has any."""
    for suite, prompts in suites:
        pairs = suite.heldout_pairs(prompts, limit)
        if pairs:
            return pairs
    return []


def _as_text(pair: PreferencePair) -> PreferencePair:
    """The pair without token ids: another tokenizer may have made those of a data set."""
    return PreferencePair(
        id=pair.id,
        prompt=pair.prompt,
        chosen=Response(pair.chosen.text),
        rejected=Response(pair.rejected.text),
        source=pair.source,
    )


async def pass_gate(
    gate: Gate,
    score: Score,
    start: ConditionLogps | None,
    settings: Evaluation,
    on_progress: OnProgress = ignore_progress,
) -> tuple[Grounding, PairLogps]:
    """Score the gate's pairs and measure the policy; returns the log-probs behind it as well.

    Args:
        score: of the policy that is measured.
        start: the start policy's log-probs; None says that this is the start policy.
    """
    if gate.missing is not None:
        return Grounding(missing=gate.missing), {}
    logps: PairLogps = {}
    dropped = list(gate.dropped)
    for condition, pairs in gate.pairs.items():
        logps[condition], lost = await _score_pairs(score, pairs, on_progress)
        dropped += lost
    grounding = make_grounding(
        logps, start, settings.grounding_gain, settings.bootstrap_samples, dropped
    )
    return grounding, logps


async def _score_pairs(
    score: Score, pairs: Sequence[PreferencePair], on_progress: OnProgress
) -> tuple[dict[str, SideLogps], list[Dropped]]:
    """Log-probs by pair id, and the answers that have none."""
    answers: list[tuple[Prompt, str]] = []
    for pair in pairs:
        answers.append((pair.prompt, pair.chosen.text))
        answers.append((pair.prompt, pair.rejected.text))
    scores = await in_chunks(score, answers, on_progress)
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
