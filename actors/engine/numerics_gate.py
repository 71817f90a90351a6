"""The numerics gate: does an engine compute what the learner computes, as nearly as it did with the start policy?

    calibrate   both hold the start policy: what is left is the noise of two implementations in this dtype
    prove       after each push: mean |Δ| and KL of a few answers, against limits that follow from that noise

Two correct implementations in bfloat16 differ by more than any fixed small tolerance (logits between 16 and 32 are
0.125 apart), and in float32 by next to nothing. So the limits are multiples of what is measured where both hold equal
weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from common.config import Loop
from common.records import (
    AnswerLogprobs,
    LogprobProbe,
    ProbeAnswer,
    ProbeReading,
    TokenLogprobs,
    WeightManifest,
)

START_VERSION = 0
_LEAST_REST = 1e-7
"""Probability of all other tokens; float32 does not tell less from nothing."""

Score: TypeAlias = Callable[
    [Sequence[ProbeAnswer]], Awaitable[list[AnswerLogprobs | None]]
]
"""An engine's log-probs of answers under its current weights; None for one that it can no longer be given."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """The settings `loop.probe_*`, as multiples and nats; see `common.config.Loop`."""

    warn: float = 2.0
    fail: float = 3.0
    slack: float = 0.01
    start: float = 0.3

    @classmethod
    def of(cls, loop: Loop) -> GateLimits:
        """Those of a configuration."""
        return cls(
            warn=loop.probe_warn,
            fail=loop.probe_fail,
            slack=loop.probe_slack,
            start=loop.probe_start,
        )


DEFAULT_LIMITS = GateLimits()


class Mismatch(RuntimeError):
    """An engine runs other weights than the learner published; `reading` is how far they are apart."""

    reading: ProbeReading


@dataclass(frozen=True, slots=True)
class _Check:
    """One figure of a reading beside its limits."""

    name: str
    value: float
    baseline: float
    warn: float
    fail: float

    @property
    def load(self) -> float:
        """The share of the limit that is used; infinite for NaN."""
        if math.isnan(self.value):
            return math.inf
        # A limit of nothing is met by nothing.
        if self.value == 0:
            return 0.0
        return self.value / self.fail if self.fail else math.inf


class NumericsGate:
    """One engine's, from its start to its end.

    Args:
        limits: of a push.
        score: asks the engine.
        holds_start: whether the engine starts with exactly the weights that the learner starts with. It does not when
            the learner's are quantised; the gate is then calibrated by a push of version 0, or by what that measured.
    """

    def __init__(
        self, limits: GateLimits, score: Score, holds_start: bool = True
    ) -> None:
        self._limits = limits
        self._score = score
        self._holds_start = holds_start
        self._baseline: ProbeReading | None = None

    async def calibrate(
        self, probe: LogprobProbe, proven: ProbeReading | None = None
    ) -> ProbeReading:
        """Measure the noise, once: while the engine runs the start policy, of which the probe is.

        Args:
            proven: what a push of version 0 measured on another engine of the run.

        Raises:
            RuntimeError: it is more than noise, so the engine holds another model.
        """
        if proven is not None and not self._holds_start:
            self._baseline = proven
        if self._baseline is None:
            reading = await self._read(probe)
            if self._holds_start:
                self._check_start(reading)
            self._baseline = reading
        return self._baseline

    async def prove(self, manifest: WeightManifest) -> ProbeReading | None:
        """How far the engine is from the learner under the weights of this push; None without a probe.

        Raises:
            Mismatch: too far, so the engine runs other weights than the learner published.
        """
        probe = manifest.probe
        if probe is None:
            return None
        reading = await self._read(probe)
        if manifest.version == START_VERSION:
            # Both hold the learner's start policy now, so this is the better measure.
            self._check_start(reading)
            self._baseline = reading
        checks = list(self._checks(reading))
        worst = max(checks, key=lambda check: check.load)
        reading = replace(reading, load=worst.load)
        if worst.load > 1:
            mismatch = Mismatch(self._refusal(manifest, worst, reading))
            mismatch.reading = reading
            raise mismatch
        warned = [check for check in checks if check.value > check.warn]
        if warned:
            reading = replace(reading, warning=self._warning(manifest, warned[0]))
        return reading

    async def _read(self, probe: LogprobProbe) -> ProbeReading:
        begun = time.perf_counter()
        scored = await self._score(probe.answers)
        seconds = time.perf_counter() - begun
        pairs: list[tuple[AnswerLogprobs, AnswerLogprobs]] = []
        for learners, engines in zip(probe.logprobs, scored, strict=True):
            if engines is not None:
                pairs.append((learners, engines))
        if 2 * len(pairs) < len(scored):
            raise RuntimeError(
                f"probe: expected an engine that scores the answers of the probe, got {len(pairs)} of {len(scored)}; "
                "are their pictures still there?"
            )
        return replace(compare(pairs), seconds=seconds)

    def _check_start(self, reading: ProbeReading) -> None:
        limit = self._limits.start
        # Written so that NaN fails, too.
        if not reading.abs_mean <= limit:
            raise RuntimeError(
                f"start policy: expected engine and learner within loop.probe_start = {limit:g} nats of each other, "
                f"got a mean |Δ log-prob| of {reading.abs_mean:.3g} (KL {reading.kl_mean:.3g}); give both the same "
                "model.path and revision"
            )

    def _checks(self, reading: ProbeReading) -> Iterator[_Check]:
        base = self._baseline
        if base is None:
            # An engine that never ran the start policy beside a probe: as if there were no noise.
            base = ProbeReading(0, 0, 0, 0, 0, 0)
        yield self._check("mean |Δ log-prob|", reading.abs_mean, base.abs_mean)
        yield self._check("mean KL", reading.kl_mean, base.kl_mean)
        # One answer's mean scatters more than that of all: twice theirs is no surprise, whatever the start had.
        worst_abs = max(base.abs_worst, 2 * base.abs_mean)
        worst_kl = max(base.kl_worst, 2 * base.kl_mean)
        yield self._check("one answer's |Δ log-prob|", reading.abs_worst, worst_abs)
        yield self._check("one answer's KL", reading.kl_worst, worst_kl)

    def _check(self, name: str, value: float, baseline: float) -> _Check:
        limits = self._limits
        warn = limits.warn * baseline + limits.slack / 2
        fail = limits.fail * baseline + limits.slack
        return _Check(name, value, baseline, warn, fail)

    def _refusal(
        self, manifest: WeightManifest, check: _Check, reading: ProbeReading
    ) -> str:
        limits = self._limits
        return (
            f"weights {manifest.version}: expected {check.name} of at most {check.fail:.3g} nats (loop.probe_fail = "
            f"{limits.fail:g} x {check.baseline:.3g} at the start policy + loop.probe_slack = {limits.slack:g}), got "
            f"{check.value:.3g} (mean {reading.abs_mean:.3g}, max {reading.abs_max:.3g}, KL {reading.kl_mean:.3g}); "
            f"engine and learner run different weights{_remedy(manifest)}"
        )

    def _warning(self, manifest: WeightManifest, check: _Check) -> str:
        return (
            f"weights {manifest.version}: {check.name} between learner and engine is {check.value:.3g} nats, "
            f"{check.baseline:.3g} at the start policy; above {check.fail:.3g} the run stops{_remedy(manifest)}"
        )


def _remedy(manifest: WeightManifest) -> str:
    """What to do where merging explains a difference."""
    share = manifest.merged_survives
    if share is None:
        return ""
    return f"; {share:.0%} of the adapters survive merging, push them alone"


def compare(
    pairs: Sequence[tuple[AnswerLogprobs, AnswerLogprobs]],
) -> ProbeReading:
    """The reading of answers, each as the learner and as the engine scores it.

    The learner's answer token stands in both; its log-prob is the first entry of the learner's mapping.
    """
    differences: list[float] = []
    divergences: list[float] = []
    worst_difference = worst_divergence = 0.0
    for learners, engines in pairs:
        of_answer: list[float] = []
        kl_of_answer: list[float] = []
        for ours, theirs in zip(learners, engines, strict=True):
            token = next(iter(ours))
            of_answer.append(abs(theirs[token] - ours[token]))
            kl_of_answer.append(divergence(ours, theirs))
        differences += of_answer
        divergences += kl_of_answer
        worst_difference = max(worst_difference, _mean(of_answer))
        worst_divergence = max(worst_divergence, _mean(kl_of_answer))
    return ProbeReading(
        abs_mean=_mean(differences),
        kl_mean=_mean(divergences),
        abs_worst=worst_difference,
        kl_worst=worst_divergence,
        abs_max=max(differences),
        kl_max=max(divergences),
    )


def divergence(ours: TokenLogprobs, theirs: TokenLogprobs) -> float:
    """KL(ours || theirs) in nats over the tokens that both know and one bucket for all others.

    Putting tokens into a bucket never makes KL larger (the log sum inequality), and it stays 0 for equal and above 0
    for different buckets: unlike an estimate from the answer's token alone, it has no sampling noise.
    """
    total = 0.0
    our_sum = their_sum = 0.0
    for token in ours.keys() & theirs.keys():
        probability = math.exp(ours[token])
        total += probability * (ours[token] - theirs[token])
        our_sum += probability
        their_sum += math.exp(theirs[token])
    our_rest = max(1 - our_sum, _LEAST_REST)
    their_rest = max(1 - their_sum, _LEAST_REST)
    return total + our_rest * math.log(our_rest / their_rest)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
