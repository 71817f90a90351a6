"""A run as every tracker is told it, twice: it ends well, and it fails. `python -m tests.cluster.trackers.stories KIND
FOLDER` tells it in a process of its own, since trackio takes its folder when it is imported; the last line it prints
says what the tracker holds of both, as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from cluster.run.outcome import GroupOutcome
from cluster.trackers.trackers import Trackers
from common.config import RunConfig
from common.data.images import ImageStore
from common.records import (
    Completion,
    Judged,
    Message,
    Part,
    PreferencePair,
    Prompt,
    Response,
    RolloutGroup,
    Verdict,
)
from tests.cluster.runs import make_config
from tests.cluster.trackers.readers import READERS, Told

VALUES = {"loss": 0.5, "rewards/margins": 0.25, "pairs/dropped/no <b>": 3.0}
QUESTION = "What | is it?"
TEXTS = ("A red <b>square</b>.", "A | cat.")
TOKENS = (1,)
KINDS: Mapping[str, tuple[str, ...]] = {
    # Every run has it without being asked.
    "tensorboard": (),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}


def judged(folder: Path) -> GroupOutcome:
    """A judged pair about a picture; its texts are no markup."""
    ref = ImageStore(folder / "images").add(Image.new("RGB", (300, 200), "red"))
    message = Message("user", (Part("image"), Part("text", QUESTION)))
    prompt = Prompt("p", (message,), (ref,))
    completions = [Completion(TOKENS, text, 0, 0, "stop") for text in TEXTS]
    group = RolloutGroup("0:p", prompt, (1, 2), 1, tuple(completions))
    sides = [Response(text) for text in TEXTS]
    pair = PreferencePair("0:p", prompt, *sides, "online", 0)
    verdict = Verdict((1.0, -1.0), ("right", "wrong"))
    outcome = Judged("0:p", (pair,), None, verdict, (0,), (1,))
    return GroupOutcome.of_judged(group, outcome)


def unjudged() -> GroupOutcome:
    """A group without picture, score and note."""
    prompt = Prompt("q", (Message("user", (Part("text", QUESTION),)),), ())
    completion = Completion(TOKENS, "Nothing.", 0, 0, "stop")
    group = RolloutGroup("0:q", prompt, TOKENS, 1, (completion,))
    return GroupOutcome("0:q", rollout=group)


def config_with(tmp_path: Path, *trackers: str, interval: int = 2) -> RunConfig:
    return make_config(
        tmp_path,
        tracking__trackers=json.dumps(list(trackers)),
        tracking__interval=interval,
    )


def track(
    config: RunConfig,
    folder: Path,
    steps: range = range(1, 3),
    name: str = "run",
    failed: bool = False,
) -> Path:
    """Let the trackers see some steps and groups; returns the run's folder."""
    run_dir = folder / name
    run_dir.mkdir(exist_ok=True)
    trackers = Trackers(config, run_dir)
    trackers.open(steps.start)
    for step in steps:
        trackers.group(judged(folder))
        trackers.group(unjudged())
        trackers.step(step, VALUES)
    trackers.close(failed)
    return run_dir


def tell(kind: str, folder: Path) -> Mapping[str, Told]:
    """`good` ends well after a resume, `bad` fails."""
    config = config_with(folder, *KINDS[kind])
    track(config, folder, range(1, 3), "good", failed=True)
    told: dict[str, Told] = {}
    for name, steps in (("good", range(3, 5)), ("bad", range(1, 3))):
        run_dir = track(config, folder, steps, name, failed=name == "bad")
        told[name] = READERS[kind](run_dir)
    return told


if __name__ == "__main__":
    # The folder of one tracker must not be that of the machine.
    for name in ("TRACKIO_DIR", "WANDB_DATA_DIR"):
        os.environ.pop(name, None)
    of_runs = tell(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps({name: asdict(told) for name, told in of_runs.items()}))
