"""The figure of `benchmarks.weight_push`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Speed against size with a panel per transport, a line per number of engines, and the plain way dashed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    transports = list(dict.fromkeys(row["transport"] for row in rows))
    figure, panels = pyplot.subplots(
        1,
        len(transports),
        figsize=(3.4 * len(transports), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, transport in zip(panels[0], transports, strict=True):
        of_transport = [row for row in rows if row["transport"] == transport]
        _draw_panel(panel, transport, of_transport)
    panels[0][0].set_ylabel("GB per second")
    panels[0][0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _draw_panel(panel: Any, transport: str, rows: list[dict[str, Any]]) -> None:
    sizes = sorted({row["gb"] for row in rows})
    for num_engines in sorted({row["engines"] for row in rows}):
        of_count = [row for row in rows if row["engines"] == num_engines]
        of_count.sort(key=lambda row: row["gb"])
        label = f"{num_engines} engines" if num_engines > 1 else "1 engine"
        speeds = [row["gb_per_s"] for row in of_count]
        (line,) = panel.plot(sizes, speeds, marker="o", label=label)
        plain = [row["raw_gb_per_s"] for row in of_count]
        panel.plot(sizes, plain, linestyle="--", color=line.get_color(), alpha=0.5)
    panel.set(title=transport, xscale="log", xlabel="GB (dashed: the plain way)")
    panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
