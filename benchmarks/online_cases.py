"""The cases of `benchmarks.online_loop`: a policy, prompts and a judge, written to a folder that both sides read."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.step_model import SIZES, build, make_pairs
from common.config import SHAPES_POLICY
from common.data.datasets import write_prompts
from common.data.images import ImageStore
from common.records import Prompt

MODEL, PROMPTS = "model", "prompts"
SHAPES = "shapes"
BETA = 0.1
TEMPERATURE = 1.0
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """What both sides do.

    Attributes:
        size: of a random model (`step_model.SIZES`), or SHAPES for the demo's policy.
        judge: a function of `online_judges`.
        batch: pairs per learner step.
        micro_batch: pairs per forward of ours.
        peer_micro_batch: prompts per generation and forward of TRL's.
        steps: learner steps, `warmup` of them not counted.
        max_tokens: of an answer.
        max_length: of prompt and answer, in tokens.
        num_prompts: that both sides draw from.
        kv_cache_mib: of our engine.
        prompts_per_call: of our engine, of which two calls are under way.
        learner_cpus: cores of two that our learner reserves; the engine has the rest, and one thread at least.
        scenes: held-out scenes that measure the trained policies; 0 where answers mean nothing.
        draw: how our prompts are drawn (`rollout.draw`).
        peer_steps: learner steps of TRL's; where it is 0, as many as ours.
        peer_batch: prompts per learner step of TRL's, whose ties are no pairs; where it is 0, as many as our pairs.
        publish_interval: steps of ours between two pushes.
        schedule: of the learning rate, over the steps of either side; TRL's default is "linear".
        seed: of everything random on both sides.
        dtype: that both sides compute in. The weights that the optimizer steps are float32 on both.
    """

    size: str
    judge: str
    batch: int
    micro_batch: int
    peer_micro_batch: int
    steps: int
    warmup: int
    max_tokens: int
    max_length: int
    num_prompts: int
    lr: float
    kv_cache_mib: int = 64
    prompts_per_call: int = 8
    learner_cpus: int = 1
    scenes: int = 0
    draw: str = "epochs"
    peer_steps: int = 0
    peer_batch: int = 0
    publish_interval: int = 1
    schedule: str = "constant"
    seed: int = 0
    dtype: str = "float32"

    @property
    def prompts_per_step(self) -> int:
        """Of TRL's side."""
        return self.peer_batch or self.batch

    @property
    def max_grad_norm(self) -> float:
        """Of our side: it clips the sum over a step's pairs as TRL's is clipped, whose mean counts its ties."""
        return MAX_GRAD_NORM * self.prompts_per_step / self.batch

    @property
    def has_quality(self) -> bool:
        """Whether its answers mean something."""
        return self.size == SHAPES


MID = Case(
    size="issue",
    judge="letters",
    batch=16,
    micro_batch=8,
    peer_micro_batch=4,
    steps=3,
    warmup=1,
    max_tokens=64,
    max_length=704,
    num_prompts=80,
    lr=1e-5,
    kv_cache_mib=768,
    # The learner is the bottleneck, and the engine would leave a third of its core idle.
    learner_cpus=2,
)
CASES = {
    "mid": MID,
    "mid_bfloat16": replace(
        MID, dtype="bfloat16", peer_micro_batch=8, steps=5, learner_cpus=1
    ),
    "tiny": Case(
        size=SHAPES,
        judge="oracle",
        # Nine of ten of TRL's pairs are ties: of 32 prompts a step it learns from three or four answers, as ours does.
        batch=4,
        micro_batch=4,
        peer_batch=32,
        peer_micro_batch=32,
        steps=120,
        peer_steps=150,
        warmup=8,
        publish_interval=8,
        schedule="linear",
        max_tokens=72,
        max_length=512,
        num_prompts=500,
        lr=3e-5,
        prompts_per_call=16,
        scenes=150,
        draw="by_worth",
    ),
    "smoke": Case(
        size="smoke",
        judge="letters",
        batch=4,
        micro_batch=4,
        peer_micro_batch=4,
        steps=3,
        warmup=1,
        max_tokens=8,
        max_length=64,
        num_prompts=16,
        lr=1e-5,
    ),
}
"""`mid`, `mid_bfloat16`: 42 M parameters, 576 image tokens, 32,000 words; `tiny`: the demo's policy; `smoke`: tests."""


def prepare(case: Case, folder: Path) -> int:
    """Write model and prompts of a case below `folder`; the number of the model's parameters."""
    store = ImageStore(folder / "pictures")
    model = folder / MODEL
    if case.size == SHAPES:
        shutil.copytree(SHAPES_POLICY, model)
        prompts = _shapes_prompts(case, store)
    else:
        size = SIZES[case.size]
        build(size, model, "float32")
        pairs = make_pairs(size, case.num_prompts, store, offline=False)
        prompts = [pair.prompt for pair in pairs]
    write_prompts(folder / PROMPTS, prompts)
    return _num_parameters(model)


def _shapes_prompts(case: Case, store: ImageStore) -> list[Prompt]:
    from common.shapes.prompts import caption_prompts

    return caption_prompts("train", case.num_prompts, 0, store)


def _num_parameters(model: Path) -> int:
    from safetensors import safe_open

    total = 0
    for path in model.glob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                shape = tensors.get_slice(name).get_shape()
                size = 1
                for length in shape:
                    size *= length
                total += size
    return total
