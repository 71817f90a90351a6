"""Commands of the documents in this process, in a scratch folder: everything is real but engines, learner and Ray."""

from __future__ import annotations

import importlib
import shlex
import shutil
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.run.crew import WorkerTypes
from common.config import SHAPES_POLICY, RunConfig, ShapesPrompts, ShapesSuite
from reward.worker import RewardWorker
from tests.docs.pages import ROOT, Block
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker
from tests.fakes.runtime import LocalRuntime
from tests.worlds.stickers import write_rows

LINKED = ("actors", "benchmarks", "cluster", "common", "learner", "reward", "tests")
QUESTION = "Describe the image."
SMALL = {
    "learner.num_steps": 2,
    "learner.global_batch": 4,
    "checkpoint.interval": 2,
    "rollout.prompts_per_call": 2,
    "evaluation.bootstrap_samples": 20,
    "evaluation.samples_shown": 1,
}
"""A run that ends within a second or two."""


class OneRuntime(LocalRuntime):
    """Takes the arguments of the real one."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


class ExportingLearner(FakeLearner):
    """Exports a model that others can load."""

    def export(self, directory: str) -> None:
        shutil.copytree(ROOT / SHAPES_POLICY, directory, dirs_exist_ok=True)


class Scratch:
    """A folder that looks like the clone, with pictures and a model of somebody's own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        (folder / "MODEL").symlink_to(ROOT / SHAPES_POLICY)
        _write_pictures(folder / "pictures")
        judge = "def score(prompt, image, completions, objects, **_):\n"
        judge += "    return [float('star' in text) for text in completions]\n"
        (folder / "my_judge.py").write_text(judge)
        self.folder = folder
        self.names: dict[str, Any] = {}
        monkeypatch.chdir(folder)
        _stand_in(monkeypatch)

    def run(self, block: Block) -> None:
        """Run a block of a page; what blocks before it left is there."""
        if block.title:
            (self.folder / block.title).write_text(f"{block.text}\n")
        elif block.language == "python":
            exec(compile(block.text, str(block.page), "exec"), self.names)
        else:
            for line in block.commands:
                run_line(shlex.split(line))


def run_line(words: Sequence[str]) -> None:
    """Run `python -m module words` here."""
    assert words[:2] == ["python", "-m"], f"who runs {words}?"
    module = importlib.import_module(words[2])
    arguments = list(words[3:])
    if "--help" in arguments:
        with pytest.raises(SystemExit) as end:
            module.main(arguments)
        assert end.value.code == 0
        return
    assert module.main(arguments) == 0, shlex.join(words)


def _write_pictures(folder: Path) -> None:
    """Pictures of one colour each, with questions."""
    folder.mkdir()
    for split, count in (("train", 30), ("test", 4)):
        rows = []
        for number in range(count):
            name = f"{split}{number}.png"
            Image.new("RGB", (48, 48), (number, 9, 90)).save(folder / name)
            row = {"image": name, "question": QUESTION, "objects": ["star"]}
            rows.append({**row, "reference": "There is a blue star at the top."})
        write_rows(folder / f"{split}.jsonl", rows)


def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put fakes in the places of what starts processes, and make runs small."""
    fakes = (
        ("cluster.runtime.ray_runtime", "RayRuntime", OneRuntime),
        ("actors.rollout", "RolloutWorker", FakeRolloutWorker),
    )
    for name, attribute, fake in fakes:
        module = types.ModuleType(name)
        setattr(module, attribute, fake)
        monkeypatch.setitem(sys.modules, name, module)

    def worker_types() -> WorkerTypes:
        return WorkerTypes(FakeRolloutWorker, RewardWorker, ExportingLearner)

    monkeypatch.setattr("cluster.run.experiment.WorkerTypes", worker_types)
    train = importlib.import_module("cluster.library").train

    def train_small(config: RunConfig, resume: bool = False) -> Any:
        return train(small(config), resume)

    monkeypatch.setattr("cluster.library.train", train_small)


def small(config: RunConfig) -> RunConfig:
    """The same run with less to do."""
    tree = config.model_dump(exclude_unset=True)
    for key, value in SMALL.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    if isinstance(config.data.prompts, ShapesPrompts):
        tree.setdefault("data", {})["prompts"] = {"kind": "shapes", "count": 20}
    for index, suite in enumerate(config.evaluation.suites):
        if isinstance(suite, ShapesSuite):
            scenes = {"validation_scenes": 3, "test_scenes": 3}
            tree["evaluation"]["suites"] = list(tree["evaluation"]["suites"])
            tree["evaluation"]["suites"][index] = {"kind": "shapes", **scenes}
    return type(config).model_validate(tree)
