"""What a run says about a push."""

from __future__ import annotations

from dataclasses import replace

from cluster.numerics.push_metrics import PushWarnings, push_metrics
from common.records import LoadReport, ProbeReading, WeightManifest

MANIFEST = WeightManifest(5, "0" * 64, 1, 4, 1.0)
READING = ProbeReading(0.01, 0.001, 0.02, 0.002, 0.2, 0.05, load=0.4, seconds=0.2)


def report_of(reading: ProbeReading | None) -> LoadReport:
    return LoadReport(5, reading, 1.0)


def test_of_several_engines_the_worst_counts() -> None:
    worse = replace(READING, abs_mean=0.03, kl_mean=0.0005, load=0.9)
    metrics = push_metrics(MANIFEST, [report_of(READING), report_of(worse)])
    assert metrics == {
        "weights/probe_abs": 0.03,
        "weights/probe_abs_max": 0.2,
        "weights/probe_kl": 0.001,
        "weights/probe_kl_max": 0.05,
        "weights/probe_load": 0.9,
        "time/probe_s": 0.2,
    }


def test_what_was_not_measured_has_no_figure() -> None:
    assert push_metrics(MANIFEST, [report_of(None)]) == {}
    merged = replace(MANIFEST, merged_survives=0.25)
    assert push_metrics(merged, []) == {"weights/merged_survives": 0.25}


def test_what_merging_loses_is_said_once() -> None:
    warnings = PushWarnings()
    whole = replace(MANIFEST, merged_survives=0.99)
    assert list(warnings.new(whole, [])) == []
    lossy = replace(MANIFEST, merged_survives=0.07)
    (warning,) = warnings.new(lossy, [])
    assert "7% of the adapters' update survives" in warning
    assert list(warnings.new(lossy, [])) == []


def test_every_push_near_its_limit_is_said() -> None:
    warnings = PushWarnings()
    warned = report_of(replace(READING, warning="weights 5: far apart"))
    for _ in range(2):
        reports = [warned, report_of(READING), warned]
        assert list(warnings.new(MANIFEST, reports)) == ["weights 5: far apart"]
