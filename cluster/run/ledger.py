"""The account of a run: every group has one outcome, every accepted pair one end. What does not add up is a fault.

group ──▶ dropped(reason)
      └─▶ accepted pairs ──▶ trained once │ discarded(reason) │ waiting
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.run.history import Event

SHOWN = 3
"""Ids in the line of a fault."""


@dataclass(slots=True)
class Ledger:
    """Every group and pair of a history, entered event by event.

    Attributes:
        source_of: accepted pair -> its source, in order of acceptance.
        trained: pair -> how often, offline pairs included.
        discarded: pair -> how often.
        drops: reason -> groups, pairs and offline rows that were not used, as `RunState.drops` counts them.
        steps: learner steps in order.
        version: the newest published version.
    """

    groups: Counter[str] = field(default_factory=Counter)
    source_of: dict[str, str] = field(default_factory=dict)
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
                self.drops[event["reason"]] += 1
                self.discarded[event["id"]] += 1
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
        for pair_id in pair_ids(event):
            if pair_id in self.source_of:
                self.faults.append(f"pair {pair_id} was accepted twice")
            self.source_of[pair_id] = event["source"]

    def _enter_step(self, event: Event) -> None:
        step = event["step"]
        self.steps.append(step)
        num_online = 0
        for pair_id in event["pairs"]:
            self.trained[pair_id] += 1
            num_online += pair_id in self.source_of
        if num_online != event["online"]:
            self.faults.append(
                f"step {step}: expected {event['online']} accepted online pairs, got {num_online}"
            )
        if event["version"] != self.version:
            self.faults.append(
                f"step {step}: expected weight version {self.version}, the newest published, got {event['version']}"
            )

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
        faults += _told("online pairs trained twice", self._trained_twice())
        faults += _told("pairs discarded twice", _repeated(self.discarded))
        faults += _told("pairs trained and discarded", self._trained_and_discarded())
        faults += self._unknown_pairs(num_offline)
        if self.steps != expected_steps:
            faults.append(
                f"steps: expected 1 to {len(self.steps)}, each once, got {_sample(_out_of_turn(self.steps))}"
            )
        return faults

    def _trained_twice(self) -> Iterator[str]:
        for pair_id in _repeated(self.trained):
            if pair_id in self.source_of:
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


def _told(fault: str, ids: Iterator[str] | Sequence[str]) -> list[str]:
    """`3 FAULT: a, b, c`; [] for none."""
    listed = list(ids)
    if not listed:
        return []
    return [f"{len(listed):,} {fault}: {_sample(listed)}"]


def _sample(ids: Iterator[str] | Sequence[str]) -> str:
    listed = list(ids)
    shown = ", ".join(listed[:SHOWN])
    return shown + (", …" if len(listed) > SHOWN else "")
