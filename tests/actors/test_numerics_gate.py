"""The numerics gate without an engine: figures by hand, limits, and what a mean over everything would hide."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from actors.engine.numerics_gate import (
    DEFAULT_LIMITS,
    NumericsGate,
    compare,
    divergence,
)
from common.data.images import ImageStore
from common.records import (
    AnswerLogprobs,
    LogprobProbe,
    ProbeAnswer,
    ProbeReading,
    WeightManifest,
)
from tests.probes import of_tokens, one_answer
from tests.tiny_models import make_prompt

TOKENS = (20, 21, 22, 23)
NUM_ANSWERS = 8


class Side:
    """An engine that scores every token `shift` nats above the learner's, the answers of `wrong` by that much more."""

    def __init__(self) -> None:
        self.shift = 0.0
        self.wrong: dict[int, float] = {}
        self.missing = 0

    async def score(
        self, answers: Sequence[ProbeAnswer]
    ) -> list[AnswerLogprobs | None]:
        scored: list[AnswerLogprobs | None] = []
        for index, _ in enumerate(answers):
            value = -1 + self.shift + self.wrong.get(index, 0)
            scored.append(of_tokens(TOKENS, [value] * len(TOKENS)))
        scored[: self.missing] = [None] * self.missing
        return scored


@pytest.fixture
def probe(tmp_path: Path) -> LogprobProbe:
    """The learner finds -1 everywhere, whatever weights it has."""
    (answer,) = one_answer(make_prompt(ImageStore(tmp_path), 1), TOKENS)
    logprobs = of_tokens(TOKENS, [-1.0] * len(TOKENS))
    rows = (logprobs,) * NUM_ANSWERS
    return LogprobProbe((answer,) * NUM_ANSWERS, rows)


@pytest.fixture
def side() -> Side:
    return Side()


def manifest_of(probe: LogprobProbe | None, version: int = 3) -> WeightManifest:
    return WeightManifest(version, "0" * 64, 1, 4, 1.0, probe)


def calibrated(side: Side, probe: LogprobProbe, shift: float) -> NumericsGate:
    """A gate whose noise at the start policy is `shift`."""
    gate = NumericsGate(DEFAULT_LIMITS, side.score)
    side.shift = shift
    asyncio.run(gate.calibrate(probe))
    return gate


def proven(gate: NumericsGate, manifest: WeightManifest) -> ProbeReading:
    reading = asyncio.run(gate.prove(manifest))
    assert reading is not None
    return reading


def test_kl_of_known_tokens_and_a_bucket_by_hand() -> None:
    """(1/2, 1/4, rest 1/4) against (1/4, 1/4, rest 1/2): 1/2 ln 2 + 0 - 1/4 ln 2."""
    ours = {1: math.log(1 / 2), 2: math.log(1 / 4)}
    theirs = {1: math.log(1 / 4), 2: math.log(1 / 4)}
    assert divergence(ours, theirs) == pytest.approx(0.25 * math.log(2))
    assert divergence(ours, ours) == 0


def test_tokens_that_one_side_knows_go_into_the_bucket() -> None:
    """Each side names its own likeliest tokens; the bucket makes KL smaller, never larger, and never negative."""
    ours = {1: math.log(0.5), 2: math.log(0.3)}
    theirs = {1: math.log(0.4), 3: math.log(0.35)}
    whole = {1: math.log(0.4), 2: math.log(0.2)}
    expected = 0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6)
    assert divergence(ours, theirs) == pytest.approx(expected)
    assert 0 < divergence(ours, theirs) < divergence(ours, whole)


def test_a_certain_place_divides_by_no_zero() -> None:
    """A probability of 1 leaves nothing for the bucket, also where float32 makes a little more than 1 of it."""
    assert divergence({1: 0.0}, {1: 1e-8}) == pytest.approx(0, abs=1e-6)


def test_means_over_tokens_of_all_answers_and_the_worst_answer() -> None:
    ours = of_tokens((1, 2), [-1.0, -2.0])
    near = of_tokens((1, 2), [-1.1, -2.0])
    far = of_tokens((1, 2), [-1.5, -2.3])
    reading = compare([(ours, near), (ours, far)])
    assert reading.abs_mean == pytest.approx((0.1 + 0 + 0.5 + 0.3) / 4)
    assert reading.abs_worst == pytest.approx(0.4)
    assert reading.abs_max == pytest.approx(0.5)
    assert 0 < reading.kl_mean < reading.kl_worst < reading.kl_max


def test_the_first_token_of_the_learners_entry_is_the_answers() -> None:
    ours = [{7: -3.0, 1: -0.1}]
    theirs = [{1: -0.6, 7: -3.25}]
    assert compare([(ours, theirs)]).abs_mean == pytest.approx(0.25)


def test_it_warns_before_it_fails(side: Side, probe: LogprobProbe) -> None:
    """At a noise of 0.02: warns above 2 x 0.02 + 0.005, fails above 3 x 0.02 + 0.01."""
    gate = calibrated(side, probe, 0.02)
    manifest = manifest_of(probe)
    for shift, warns in ((0.02, False), (0.044, False), (0.046, True), (0.069, True)):
        side.shift = shift
        reading = proven(gate, manifest)
        assert reading.abs_mean == pytest.approx(shift)
        assert bool(reading.warning) == warns
        assert reading.load == pytest.approx(shift / 0.07)
    assert "0.069 nats, 0.02 at the start policy; above 0.07" in reading.warning
    side.shift = 0.071
    message = (
        r"weights 3: expected mean \|Δ log-prob\| of at most 0\.07 nats .* got 0\.071"
    )
    with pytest.raises(RuntimeError, match=message) as info:
        proven(gate, manifest)
    assert "\n" not in str(info.value)


def test_noise_that_is_small_leaves_little_room(
    side: Side, probe: LogprobProbe
) -> None:
    """In float32 a hundredth of a nat is a fault; in bfloat16 it is a good engine."""
    side.shift = 0.02
    exact = calibrated(side, probe, 1e-6)
    side.shift = 0.02
    with pytest.raises(RuntimeError, match=r"at most 0\.01 nats"):
        proven(exact, manifest_of(probe))
    noisy = calibrated(side, probe, 0.02)
    assert not proven(noisy, manifest_of(probe)).warning


def test_one_wrong_answer_is_no_longer_hidden_by_the_others(
    side: Side, probe: LogprobProbe
) -> None:
    """A picture whose features are old: 0.2 in one answer of eight leaves the mean of all below its limit."""
    gate = calibrated(side, probe, 0.02)
    side.wrong = {5: 0.2}
    mean = (7 * 0.02 + 0.22) / 8
    assert mean < 3 * 0.02 + 0.01
    with pytest.raises(RuntimeError, match=r"one answer's \|Δ log-prob\|.* got 0\.22"):
        proven(gate, manifest_of(probe))


def test_it_is_measured_once_and_by_the_start_policy(
    side: Side, probe: LogprobProbe
) -> None:
    gate = calibrated(side, probe, 0.02)
    side.shift = 0.2
    again = asyncio.run(gate.calibrate(probe))
    assert again.abs_mean == pytest.approx(0.02)


def test_a_push_of_version_0_calibrates(side: Side, probe: LogprobProbe) -> None:
    """Of a quantised base, which the engine's files do not have."""
    gate = NumericsGate(DEFAULT_LIMITS, side.score, holds_start=False)
    side.shift = 0.5
    asyncio.run(gate.calibrate(probe))
    side.shift = 0.02
    proven(gate, manifest_of(probe, 0))
    side.shift = 0.071
    with pytest.raises(RuntimeError, match="expected mean"):
        proven(gate, manifest_of(probe, 1))


def test_an_engine_that_starts_later_takes_over_what_that_push_measured(
    side: Side, probe: LogprobProbe
) -> None:
    """It starts with the unquantised base, which is far from what the learner holds: that must not pass as noise."""
    gate = NumericsGate(DEFAULT_LIMITS, side.score, holds_start=False)
    side.shift = 0.02
    of_version_0 = proven(gate, manifest_of(probe, 0))
    later = NumericsGate(DEFAULT_LIMITS, side.score, holds_start=False)
    side.shift = 0.5
    asyncio.run(later.calibrate(probe, of_version_0))
    side.shift = 0.069
    assert proven(later, manifest_of(probe)).abs_mean == pytest.approx(0.069)
    side.shift = 0.071
    with pytest.raises(RuntimeError, match="expected mean"):
        proven(later, manifest_of(probe))


def test_an_engine_that_holds_the_start_policy_measures_for_itself(
    side: Side, probe: LogprobProbe
) -> None:
    """So that one which holds another model is noticed."""
    side.shift = 0.02
    first = calibrated(side, probe, 0.02)
    of_version_0 = proven(first, manifest_of(probe, 0))
    side.shift = 0.4
    later = NumericsGate(DEFAULT_LIMITS, side.score)
    with pytest.raises(RuntimeError, match="revision"):
        asyncio.run(later.calibrate(probe, of_version_0))


def test_another_model_is_no_noise(side: Side, probe: LogprobProbe) -> None:
    with pytest.raises(RuntimeError, match=r"0\.3 nats .* got .* 0\.4 .*revision"):
        calibrated(side, probe, 0.4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_fails(side: Side, probe: LogprobProbe, value: float) -> None:
    gate = calibrated(side, probe, 0.02)
    side.wrong = {2: value}
    with pytest.raises(RuntimeError, match="weights 3"):
        proven(gate, manifest_of(probe))
    with pytest.raises(RuntimeError, match="start policy"):
        calibrated(side, probe, 0.02)


def test_a_picture_that_is_gone_is_left_out_half_of_them_are_not(
    side: Side, probe: LogprobProbe
) -> None:
    gate = calibrated(side, probe, 0.02)
    side.missing = NUM_ANSWERS // 2
    assert proven(gate, manifest_of(probe)).abs_mean == pytest.approx(0.02)
    side.missing += 1
    with pytest.raises(RuntimeError, match="got 3 of 8; are their pictures"):
        proven(gate, manifest_of(probe))


def test_without_a_probe_nothing_is_proven(side: Side) -> None:
    gate = NumericsGate(DEFAULT_LIMITS, side.score)
    manifest = manifest_of(None)
    assert asyncio.run(gate.prove(manifest)) is None


def test_merging_is_named_where_it_explains_the_difference(
    side: Side, probe: LogprobProbe
) -> None:
    gate = calibrated(side, probe, 0.02)
    side.shift = 0.1
    merged = replace(manifest_of(probe), merged_survives=0.07)
    with pytest.raises(RuntimeError, match="7% of the adapters survive merging"):
        proven(gate, merged)
