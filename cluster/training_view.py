"""How far a training is: on a terminal one view that can be read from across the room, in a log plain lines.

╭─────────────────────────────── runs/demo ────────────────────────────────╮
│  ╷ ╷ ╶─╮ ╱ ╶╮  ╭─╮ ╭─╮     ╭─╴   ╭─╴       ╭─╮ ╶─╮                        │
│  ╰─┤ ╭─╯ ╱  │  │ │ │ │     ╰─╮   ╰─╮       ├─╯ ╭─╯ …                      │
│  …   step                  pairs a second  time left                      │
│  waits for pairs   engines ███████░░ 82 %   judges ██░░░░░░░ 17 %         │
╰──────────────────────────────────────────────────────────────────────────╯
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.progress import ProgressReport
from cluster.runtime.work_log import WorkLog

RECENT_STEPS = 20
"""Steps that the rate and the time left are of."""
BAR = 10
"""Characters of a bar of load."""
GLYPHS = {
    "0": ("╭─╮", "│ │", "╰─╯"),
    "1": ("╶╮ ", " │ ", "╶┴╴"),
    "2": ("╶─╮", "╭─╯", "╰─╴"),
    "3": ("╶─╮", "╶─┤", "╶─╯"),
    "4": ("╷ ╷", "╰─┤", "  ╵"),
    "5": ("╭─╴", "╰─╮", "╶─╯"),
    "6": ("╭─╴", "├─╮", "╰─╯"),
    "7": ("╶─╮", "  │", "  ╵"),
    "8": ("╭─╮", "├─┤", "╰─╯"),
    "9": ("╭─╮", "╰─┤", "╶─╯"),
    "/": ("  ╱", " ╱ ", "╱  "),
    ".": (" ", " ", "."),
    ":": (" ", "∙", "∙"),
    "-": ("  ", "──", "  "),
}
"""Figures three lines high."""
ROLES = {"rollout": "engines", "reward": "judges", "learner": "learner"}
WAITS = {
    "train": "the learner's step",
    "push": "a weight push",
    "load": "engines that load weights",
    "prove": "engines that prove their weights",
    "save": "a copy for the checkpoint",
    "start": "workers that start",
}
"""Kind of a call that runs -> what the run waits for, the first that runs."""


class TrainingView:
    """Follows the steps of a training; a context manager. Writes to standard error only.

    Args:
        name: of the run.
        total: steps of the whole run.
        done: steps that were done before.
        global_batch: pairs of a step.
        work: what the workers do.
    """

    def __init__(
        self, name: str, total: int, done: int, global_batch: int, work: WorkLog
    ) -> None:
        self._name = name
        self._total = total
        self._done = done
        self._global_batch = global_batch
        self._work = work
        self._times: deque[float] = deque([time.monotonic()], RECENT_STEPS + 1)
        self._last: Mapping[str, float] = {}
        self._validation = ""
        self._live: Live | None = None
        self._lines: ProgressReport | None = None

    def __enter__(self) -> TrainingView:
        if sys.stderr.isatty():
            console = Console(stderr=True)
            self._live = Live(
                console=console,
                get_renderable=self.render,
                refresh_per_second=2,
                # What goes into a file stays there.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()
        else:
            self._lines = ProgressReport("training", self._total, self._done)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._lines is not None:
            self._lines.__exit__(kind, error, trace)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is over."""
        self._done = step
        self._times.append(time.monotonic())
        self._last = metrics
        if "validation/score" in metrics:
            score = metrics["validation/score"]
            self._validation = f"validation {score:.3f} at step {step}"
        if self._lines is not None:
            self._lines.advance(self.line())

    @property
    def pairs_per_s(self) -> float:
        """Over the last steps."""
        num_steps = len(self._times) - 1
        seconds = self._times[-1] - self._times[0]
        return num_steps * self._global_batch / seconds if seconds > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds to the last step; None before the first one."""
        rate = self.pairs_per_s / self._global_batch
        return (self._total - self._done) / rate if rate else None

    @property
    def waits_for(self) -> str:
        """What has to come before the next step, in words."""
        running = [*self._work.running("learner"), *self._work.running("rollout")]
        kinds = {work.what for work in running}
        for kind, words in WAITS.items():
            if kind in kinds:
                return words
        judged = len(self._work.running("reward"))
        if "sample" in kinds:
            return f"pairs ({judged} calls with the judge)" if judged else "pairs"
        return "the judge" if judged else "pairs"

    def line(self) -> str:
        """For a log."""
        loads: list[str] = []
        for role, name in ROLES.items():
            loads.append(f"{name} {self._work.busy_frac(role):.0%}")
        parts = [
            f"{self.pairs_per_s:.1f} pairs/s",
            *self._figures(),
            f"busy: {', '.join(loads)}",
        ]
        return " · ".join(parts)

    def _figures(self) -> list[str]:
        metrics = self._last
        figures: list[str] = []
        if "staleness/mean" in metrics:
            figures.append(f"staleness {metrics['staleness/mean']:.2f}")
        if "rewards/margins" in metrics:
            figures.append(f"margin {metrics['rewards/margins']:.3f}")
        if "loss" in metrics:
            figures.append(f"loss {metrics['loss']:.3f}")
        if self._validation:
            figures.append(self._validation)
        return figures

    def render(self) -> RenderableType:
        """The view on a terminal."""
        figures = Table.grid(padding=(0, 5, 0, 0))
        figures.add_row(
            large(f"{self._done}/{self._total}"),
            large(f"{self.pairs_per_s:.1f}"),
            large(_clock(self.left_s)),
        )
        figures.add_row(
            Text("step", "dim"),
            Text("pairs a second", "dim"),
            Text("time left", "dim"),
        )
        bar = Padding(ProgressBar(self._total, self._done), (1, 0))
        loads = Table.grid(padding=(0, 3, 0, 0))
        loads.add_row(*[self._load(role) for role in ROLES])
        waits = Text.assemble("waits for ", (self.waits_for, "bold yellow"))
        last = Text(" · ".join(self._figures()), "dim")
        lines = Group(figures, bar, waits, loads, last)
        return Panel(lines, title=Text(self._name), padding=(0, 2))

    def _load(self, role: str) -> Text:
        share = self._work.busy_frac(role)
        full = round(BAR * share)
        return Text.assemble(
            f"{ROLES[role]} ",
            ("█" * full, "green"),
            ("░" * (BAR - full), "dim"),
            f" {share:.0%}",
        )


def large(figure: str) -> Text:
    """A figure three lines high."""
    lines: list[str] = []
    for row in range(3):
        parts = [GLYPHS[character][row] for character in figure]
        lines.append(" ".join(parts))
    return Text("\n".join(lines), "bold cyan", no_wrap=True)


def _clock(seconds: float | None) -> str:
    """`1:05:00`, or `5:00` below an hour."""
    if seconds is None:
        return "--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"
