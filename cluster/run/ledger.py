"""The account of a run: every group has one outcome, every accepted pair one end. What does not add up is a fault.

group ──▶ dropped(reason)
      └─▶ accepted pairs ──▶ trained 1 … uses times │ discarded(reason) │ waiting
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.run.history import Event

SHOWN = 3
"""Ids in the line of a fault."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run allows.

    Attributes:
        uses: how often an online pair may be trained on.
        max_staleness: how old it may be then, in versions; None for any.
    """

    uses: int = 1
    max_staleness: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Limits:
        """Those of a `config.json`, {} for none; earlier versions have no `online_uses`."""
        uses = config.get("mixture", {}).get("online_uses", 1)
        return cls(uses, config.get("loop", {}).get("max_staleness"))


@dataclass(slots=True)
class Ledger:
    """Every group and pair of a history, entered event by event.

    Attributes:
        source_of: accepted pair -> its source, in order of acceptance.
        version_of: accepted pair -> the version that its staleness counts from.
        reused: source -> places of batches that were filled with pairs trained before, as `BufferState` counts them.
        trained: pair -> how often, offline pairs included.
        discarded: pair -> how often.
        drops: reason -> groups, pairs and offline rows that were not used, as `RunState.drops` counts them.
        steps: learner steps in order.
        version: the newest published version.
    """

    limits: Limits = Limits()
    groups: Counter[str] = field(default_factory=Counter)
    source_of: dict[str, str] = field(default_factory=dict)
    version_of: dict[str, int] = field(default_factory=dict)
    reused: Counter[str] = field(default_factory=Counter)
    trained: Counter[str] = field(default_factory=Counter)
    discarded: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    steps: list[int] = field(default_factory=list)
    version: int = 0
    faults: list[str] = field(default_factory=list)

    def enter(self, event: Event) -> None:
        """Count one event."""
        match event["event"]:
            case "group":
                self._enter_group(event)
            case "discard":
                self._enter_discard(event)
            case "step":
                self._enter_step(event)
            case "publish":
                self.version = event["version"]
            case "row" if event["id"] not in self.source_of:
                # A row with the id of an accepted pair is one whose picture has gone: it is trained all the same.
                self.drops[event["outcome"]] += 1

    def _enter_group(self, event: Event) -> None:
        self.groups[event["id"]] += 1
        if event["outcome"] != "pair":
            self.drops[event["outcome"]] += 1
            return
        ids = pair_ids(event)
        for pair_id in ids:
            if pair_id in self.source_of:
                self.faults.append(f"pair {pair_id} was accepted twice")
            self.source_of[pair_id] = event["source"]
        # Journals of earlier versions do not have them.
        versions = event.get("pair_versions", ())
        self.version_of.update(
            zip(
                ids,
                versions,
                strict=False,
            )
        )

    def _enter_discard(self, event: Event) -> None:
        pair_id = event["id"]
        num_uses = event.get("uses", 0)
        self.drops[event["reason"]] += 1
        if not num_uses:
            self.discarded[pair_id] += 1
            return
        # Refused when it came again: trained on it stays.
        if self.trained[pair_id] == num_uses and pair_id in self.source_of:
            self.reused[self.source_of[pair_id]] += 1
        else:
            self.faults.append(
                f"pair {pair_id} was refused after {num_uses} uses, got {self.trained[pair_id]} before"
            )

    def _enter_step(self, event: Event) -> None:
        step = event["step"]
        self.steps.append(step)
        online = [pair_id for pair_id in event["pairs"] if pair_id in self.source_of]
        again = [pair_id for pair_id in online if self.trained[pair_id]]
        if len(online) != event["online"]:
            self.faults.append(
                f"step {step}: expected {event['online']} accepted online pairs, got {len(online)}"
            )
        if len(again) != event.get("reused", 0):
            self.faults.append(
                f"step {step}: expected {event.get('reused', 0)} online pairs trained before, got {len(again)}"
            )
        twice = _repeated(Counter(online))
        self.faults += _told(f"online pairs twice in step {step}", twice)
        too_old = self._too_old(online, event["version"])
        self.faults += _told(f"stale pairs in step {step}", too_old)
        self.trained.update(event["pairs"])
        self.reused.update(self.source_of[pair_id] for pair_id in again)
        if event["version"] != self.version:
            self.faults.append(
                f"step {step}: expected weight version {self.version}, the newest published, got {event['version']}"
            )

    def _too_old(
        self,
        pairs: Sequence[str],
        version: int,
    ) -> Iterator[str]:
        limit = self.limits.max_staleness
        for pair_id in pairs:
            sampled = self.version_of.get(pair_id)
            if limit is not None and sampled is not None and version - sampled > limit:
                yield pair_id

    @property
    def waiting(self) -> list[str]:
        """Accepted pairs that are neither trained nor discarded, in order of acceptance."""
        waiting = []
        for pair_id in self.source_of:
            if not self.trained[pair_id] and not self.discarded[pair_id]:
                waiting.append(pair_id)
        return waiting

    @property
    def accepted(self) -> Counter[str]:
        """Pairs trained or waiting, by source, as `RunState.accepted` counts them."""
        counts: Counter[str] = Counter()
        for pair_id, source in self.source_of.items():
            if not self.discarded[pair_id]:
                counts[source] += 1
        return counts

    def check(self, num_offline: int) -> list[str]:
        """What does not add up, a line for each kind of fault.

        Args:
            num_offline: pairs of the offline set, which may be trained on once an epoch.
        """
        expected_steps = list(range(1, len(self.steps) + 1))
        faults = list(self.faults)
        faults += _told("groups with more than one outcome", _repeated(self.groups))
        too_often = "twice" if self.limits.uses == 1 else "too often"
        faults += _told(f"online pairs trained {too_often}", self._trained_too_often())
        faults += _told("pairs discarded twice", _repeated(self.discarded))
        faults += _told("pairs trained and discarded", self._trained_and_discarded())
        faults += self._unknown_pairs(num_offline)
        if self.steps != expected_steps:
            faults.append(
                f"steps: expected 1 to {len(self.steps)}, each once, got {_sample(_out_of_turn(self.steps))}"
            )
        return faults

    def _trained_too_often(self) -> Iterator[str]:
        for pair_id, count in self.trained.items():
            if count > self.limits.uses and pair_id in self.source_of:
                yield pair_id

    def _trained_and_discarded(self) -> Iterator[str]:
        for pair_id in self.discarded:
            # An offline pair may be trained in one epoch and refused in another.
            if pair_id in self.source_of and self.trained[pair_id]:
                yield pair_id

    def _unknown_pairs(self, num_offline: int) -> list[str]:
        """More different pairs outside the accepted ones than the offline set has."""
        unknown = set()
        for pair_id in (*self.trained, *self.discarded):
            if pair_id not in self.source_of:
                unknown.add(pair_id)
        if len(unknown) <= num_offline:
            return []
        return _told(
            f"pairs that no group became (the offline set has {num_offline})",
            sorted(unknown),
        )


def pair_ids(group: Event) -> Sequence[str]:
    """The pairs that an accepted group became: several with a policy gradient, else one with the group's id."""
    pairs: Mapping[str, object] | None = group.get("pairs")
    if pairs is None:
        return [group["id"]]
    return list(pairs)


def _repeated(counts: Counter[str]) -> Iterator[str]:
    for name, count in counts.items():
        if count > 1:
            yield name


def _out_of_turn(steps: Sequence[int]) -> Iterator[str]:
    for expected, step in enumerate(steps, start=1):
        if step != expected:
            yield f"{step} in the place of {expected}"


def _told(
    fault: str,
    ids: Iterator[str] | Sequence[str],
) -> list[str]:
    """`3 FAULT: a, b, c`; [] for none."""
    listed = list(ids)
    if not listed:
        return []
    return [f"{len(listed):,} {fault}: {_sample(listed)}"]


def _sample(ids: Iterator[str] | Sequence[str]) -> str:
    listed = list(ids)
    shown = ", ".join(listed[:SHOWN])
    return shown + (", …" if len(listed) > SHOWN else "")
