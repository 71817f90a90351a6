"""The files that the workers of a run must see, whatever node they are on."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from cluster.run.training_data import TrainingData
from cluster.runtime.judge_engines import judge_seats
from cluster.runtime.shared_files import SharedFiles
from common.config import RunConfig, TorchEye
from common.config.eyes import eyes_of
from common.data.records_on_disk import usable
from common.records import Dropped, Prompt


def files_of(config: RunConfig, run_dir: Path, data: TrainingData) -> SharedFiles:
    """The run's folder for all workers, a picture of its data, and every worker's model."""
    policy = {config.model.path: "model.path"}
    of_actor = {"rollout": policy, "learner": policy, "reward": {}}
    for seat in judge_seats(config):
        of_actor[seat.name] = {seat.eye.path: "reward.judge.path"}
    for eye in eyes_of(config.reward.judge):
        if isinstance(eye, TorchEye):
            of_actor["reward"][eye.path] = "reward.judge.path"
    pictures: dict[str, str] = {}
    unusable: list[Dropped] = []
    for prompt in islice(usable(data.prompts, unusable), 1):
        pictures |= _pictures(prompt, "data.prompts")
    for pair in islice(usable(data.offline, unusable), 1):
        pictures |= _pictures(pair.prompt, "data.offline")
    return SharedFiles("run.dir", run_dir, pictures, of_actor)


def _pictures(prompt: Prompt, key: str) -> dict[str, str]:
    """Those of one prompt tell of all: they lie in one folder. One that is nowhere is the learner's to drop."""
    paths = [image.path for image in prompt.images]
    return {path: key for path in paths if Path(path).exists()}
