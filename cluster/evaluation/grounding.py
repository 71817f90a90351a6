"""The scorecard's grounding gate: its held-out pairs, and how an engine's policy ranks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cluster.evaluation.asking import Asker
from common.config import Evaluation
from common.data import images
from common.data.datasets import read_pairs
from common.data.image_conditions import CONDITIONS, Condition
from common.data.images import ImageStore
from common.errors import Refused
from common.evaluation import ConditionLogps, TaskPrompts
from common.protocols import Suite
from common.records import Dropped, PreferencePair, Response, SideLogps
from common.row_faults import drop_report
from learner.grounding import under_conditions
from reward.suites.grounding import Grounding, make_grounding

PairLogps: TypeAlias = dict[Condition, dict[str, SideLogps]]


@dataclass(frozen=True, slots=True)
class AskedSuite:
    """A suite and what it asks of one split; `dropped` are rows that are no prompt."""

    suite: Suite
    prompts: TaskPrompts
    pairs: Sequence[PreferencePair] = ()
    dropped: Sequence[Dropped] = ()

    @property
    def num_items(self) -> int:
        """Answers to be generated or scored."""
        num_prompts = sum(map(len, self.prompts.values()))
        return num_prompts + 2 * len(self.pairs)


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
    suites: Sequence[AskedSuite],
    store: ImageStore,
) -> Gate:
    """The pairs of `evaluation.pairs`, or those of the first suite that has any.

    Args:
        suites: with what they ask of a split that nobody trains on.
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
    pairs: Sequence[PreferencePair],
    shown: Sequence[PreferencePair],
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
    pairs: Sequence[PreferencePair],
    store: ImageStore,
) -> dict[Condition, Sequence[PreferencePair]]:
    """The pairs as they are, over a grey picture, and over another pair's; conditions without any pair are left out."""
    shown = under_conditions(pairs, store)
    # In the order of CONDITIONS: the true picture comes first everywhere.
    by_condition: dict[Condition, Sequence[PreferencePair]] = {}
    for condition in CONDITIONS:
        if condition in shown:
            by_condition[condition] = shown[condition]
    return by_condition


def _suite_pairs(suites: Sequence[AskedSuite], limit: int) -> list[PreferencePair]:
    """Pairs of the first suite that has any: measured ones, or those it makes of its prompts."""
    for asked in suites:
        pairs = list(asked.pairs[:limit])
        if not pairs:
            pairs = asked.suite.heldout_pairs(asked.prompts, limit)
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
    asker: Asker,
    start: ConditionLogps | None,
    settings: Evaluation,
) -> tuple[Grounding, PairLogps]:
    """Score the gate's pairs and measure the policy; returns the log-probs behind it as well.

    Args:
        asker: of the policy that is measured.
        start: the start policy's log-probs; None says that this is the start policy.
    """
    if gate.missing is not None:
        return Grounding(missing=gate.missing), {}
    logps: PairLogps = {}
    dropped = list(gate.dropped)
    for condition, pairs in gate.pairs.items():
        name = f"grounding/{condition}"
        logps[condition], lost = await asker.score_pairs(name, pairs)
        dropped += lost
    grounding = make_grounding(
        logps,
        start,
        settings.grounding_gain,
        settings.bootstrap_samples,
        dropped,
    )
    return grounding, logps
