"""What a run says about a push: the figures of the numerics gate, and warnings before the gate shuts.

    weights/probe_abs, _kl           mean |Δ log-prob| and mean KL between learner and engine, nats
    weights/probe_abs_max, _kl_max   of one token
    weights/probe_load               the share of a limit of the gate that is used; above 1 the run stops
    time/probe_s                     of an engine's load, for scoring the answers
    weights/merged_survives          the share of a LoRA update that merging leaves

Of several engines the worst counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.records import LoadReport, WeightManifest

LEAST_SURVIVING = 0.95
"""Below this share of an update a person should know."""


def push_metrics(
    manifest: WeightManifest, reports: Sequence[LoadReport]
) -> dict[str, float]:
    """Figures by metric key; none that was not measured."""
    metrics: dict[str, float] = {}
    readings = [report.probe for report in reports if report.probe is not None]
    if readings:
        metrics["weights/probe_abs"] = max(reading.abs_mean for reading in readings)
        metrics["weights/probe_abs_max"] = max(reading.abs_max for reading in readings)
        metrics["weights/probe_kl"] = max(reading.kl_mean for reading in readings)
        metrics["weights/probe_kl_max"] = max(reading.kl_max for reading in readings)
        metrics["weights/probe_load"] = max(reading.load for reading in readings)
        metrics["time/probe_s"] = max(reading.seconds for reading in readings)
    if manifest.merged_survives is not None:
        metrics["weights/merged_survives"] = manifest.merged_survives
    return metrics


class PushWarnings:
    """Says what a person should know of a push; what merging loses, once."""

    def __init__(self) -> None:
        self._told_of_merging = False

    def new(
        self, manifest: WeightManifest, reports: Sequence[LoadReport]
    ) -> Iterator[str]:
        """The warnings of this push, a line each."""
        share = manifest.merged_survives
        is_told = self._told_of_merging
        if share is not None and share < LEAST_SURVIVING and not is_told:
            self._told_of_merging = True
            yield (
                f"weights {manifest.version}: {share:.0%} of the adapters' update survives merging into the weights; "
                "engines sample from what is left. weights/merged_survives follows it; model.tuning.push = adapter is "
                "exact"
            )
        warnings = {report.probe.warning for report in reports if report.probe}
        yield from sorted(warnings - {""})
