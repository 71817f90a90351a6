"""All trackers of one run, behind one queue and one thread: a server that is slow or gone never holds the run up."""

from __future__ import annotations

import importlib.util
import json
import logging
import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster.run.outcome import GroupOutcome
from cluster.trackers.base import SIDE, Row, Tracker
from cluster.trackers.tensorboard import TensorBoard
from common.command_line.flat import flattened
from common.config import RunConfig
from common.config.evaluation import Mlflow, TrackerConfig, Trackio, Wandb
from common.conversation import question_of
from common.data import images
from common.errors import Refused, UserError
from common.paths import replace_file
from common.records import Prompt

log = logging.getLogger("sightline")

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
"""Kind of a tracker, which is also its module -> the package to install."""
RUN_ID = "tracking.json"
"""Holds the name by which trackers know a run directory."""
CLOSE_S = 20.0
"""How long the end of a run waits for what is not sent yet: less than workers may go without being asked."""


class Trackers:
    """The trackers that a config names, and TensorBoard.

    Raises:
        UserError: a package is not installed.
    """

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        for settings in config.tracking.trackers:
            check_installed(settings)
        self._config = config
        self._run_dir = run_dir
        most = config.tracking.completions
        self._recent: deque[GroupOutcome] = deque(maxlen=most)
        self._open: dict[str, Tracker] = {}
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def open(self, first_step: int) -> None:
        """A training begins with this step; what was written of it before is replaced where a tracker can do that."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._calls.put(lambda: self._start(first_step))

    def group(self, outcome: GroupOutcome) -> None:
        """A group has come to its outcome; the last ones before a table are its rows."""
        if outcome.rollout is not None:
            self._recent.append(outcome)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a step are known."""
        known = dict(values)
        self._calls.put(
            lambda: self._tell(lambda tracker: tracker.metrics(step, known))
        )
        if step % self._config.tracking.interval == 0 and self._recent:
            outcomes = list(self._recent)
            self._recent.clear()
            self._calls.put(lambda: self._send_table(step, outcomes))

    def close(self, failed: bool) -> None:
        """Send what is left and how the run ended, and end."""
        if self._thread is None:
            return
        self._calls.put(lambda: self._tell(lambda tracker: tracker.close(failed)))
        self._calls.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            names = ", ".join(self._open)
            log.warning("trackers (%s) have not taken all within %g s", names, CLOSE_S)
        self._thread = None

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _start(self, first_step: int) -> None:
        # Where a learner was lost, its training begins anew.
        self._tell(lambda tracker: tracker.close(failed=True))
        self._open = {}
        self._try("tensorboard", partial(self._open_board, first_step))
        for settings in self._config.tracking.trackers:
            self._try(settings.kind, partial(self._open_tracker, settings))

    def _open_board(self, first_step: int) -> None:
        self._open["tensorboard"] = TensorBoard(self._run_dir, first_step)

    def _open_tracker(self, settings: TrackerConfig) -> None:
        shown = self._config.model_dump(mode="json")
        self._open[settings.kind] = open_tracker(settings, self._run_dir, shown)

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, partial(call, tracker))

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        # Libraries and servers fail in ways of their own; none is worth a run.
        except Exception as error:
            self._open.pop(name, None)
            line = str(error).strip().partition("\n")[0][:300]
            kind = type(error).__name__
            log.warning("tracker %s gets nothing more: %s: %s", name, kind, line)

    def _send_table(self, step: int, outcomes: Sequence[GroupOutcome]) -> None:
        rows: list[Row] = []
        for outcome in outcomes:
            rows += _rows(step, outcome)
        rows = rows[-self._config.tracking.completions :]
        self._tell(lambda tracker: tracker.completions(step, rows))


def check_installed(settings: TrackerConfig) -> None:
    """Refuse (UserError) a tracker whose package is not here."""
    if importlib.util.find_spec(settings.kind) is None:
        raise UserError(
            f"tracking.trackers: expected the package of {settings.kind} to be installed, got none; "
            f"pip install {PACKAGES[settings.kind]}"
        )


def open_tracker(
    settings: TrackerConfig, run_dir: Path, config: Mapping[str, Any]
) -> Tracker:
    """A tracker of this kind, for the whole config of a run as plain JSON."""
    run_id = _run_id(run_dir)
    match settings:
        case Wandb():
            from cluster.trackers.wandb_tracker import WandbTracker

            return WandbTracker(settings, run_dir, run_id, config)
        case Mlflow():
            from cluster.trackers.mlflow_tracker import MlflowTracker

            return MlflowTracker(settings, run_dir, run_id, flattened(config))
        case Trackio():
            from cluster.trackers.trackio_tracker import TrackioTracker

            return TrackioTracker(settings, run_dir, run_id, config)


def _run_id(run_dir: Path) -> str:
    """The same for every start of a run directory."""
    path = run_dir / RUN_ID
    if not path.exists():
        replace_file(path, json.dumps({"id": secrets.token_hex(6)}) + "\n")
    run_id: str = json.loads(path.read_text())["id"]
    return run_id


def _rows(step: int, outcome: GroupOutcome) -> Iterator[Row]:
    """Both sides of the group's first pair; of a group without a pair its first completion."""
    rollout, judged = outcome.rollout, outcome.judged
    assert rollout is not None, "only sampled groups are kept"
    verdict = None if judged is None else judged.verdict
    sides = {0: ""}
    if judged is not None and judged.chosen:
        sides = {judged.chosen[0]: "chosen", judged.rejected[0]: "rejected"}
    picture = _picture(rollout.prompt)
    for index, side in sides.items():
        score, note = None, ""
        if verdict is not None:
            score = verdict.scores[index]
            note = verdict.notes[index] if verdict.notes else ""
        text = rollout.completions[index].text
        yield Row(step, question_of(rollout.prompt), text, side, score, note, picture)


def _picture(prompt: Prompt) -> Any:
    if not prompt.images:
        return None
    try:
        picture = images.read(prompt.images[0])
    except Refused:
        return None
    picture.thumbnail((SIDE, SIDE))
    return picture
