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
    policy = _here("model.path", config.model.path)
    of_actor = {"rollout": policy, "learner": policy, "reward": {}}
    for seat in judge_seats(config):
        of_actor[seat.name] = _here("reward.judge.path", seat.eye.path)
    for eye in eyes_of(config.reward.judge):
        if isinstance(eye, TorchEye):
            of_actor["reward"] |= _here("reward.judge.path", eye.path)
    unusable: list[Dropped] = []
    pictures: dict[str, str] = {}
    # One row tells of all: their pictures lie in one folder.
    for prompt in islice(usable(data.prompts, unusable), 1):
        pictures |= _pictures("data.prompts", prompt)
    for pair in islice(usable(data.offline, unusable), 1):
        pictures |= _pictures("data.offline", pair.prompt)
    return SharedFiles("run.dir", run_dir, pictures, of_actor)


def _pictures(key: str, prompt: Prompt) -> dict[str, str]:
    return _here(key, *[image.path for image in prompt.images])


def _here(key: str, *paths: str) -> dict[str, str]:
    """Those that the controller has, each with its key. What is nowhere is told elsewhere, or dropped and counted."""
    return {path: key for path in paths if Path(path).exists()}
