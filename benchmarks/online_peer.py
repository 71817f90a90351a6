"""TRL's side of `benchmarks.online_loop`: its OnlineDPOTrainer with pictures, as fast as it goes on a CPU.

It samples by `generate` of transformers. Its `use_vllm` is no choice: with it, in TRL 1.16, the trainer's own forward
is given no pictures (`training_step` leaves `vision_inputs` at None). Besides, on a CPU a server's client asks for a
GPU, and a colocated engine refuses the first push, in which CLIP's weights have the names of transformers 5.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import online_judges
from benchmarks.online_cases import (
    BETA,
    MAX_GRAD_NORM,
    MODEL,
    PROMPTS,
    TEMPERATURE,
    Case,
)
from benchmarks.online_sides import end_id, rates
from common.records import Prompt

WEIGHTS = "*.safetensors"

Judge: TypeAlias = Callable[..., list[float]]


class TimedJudge:
    """A reward function that counts its seconds, and the pairs whose scores are equal."""

    def __init__(self, judge: Judge) -> None:
        self.__name__ = "judge"
        self._judge = judge
        self.seconds = 0.0
        self.num_ties = 0

    def __call__(self, **arguments: Any) -> list[float | None]:
        """The scores of first and second answers, the first ones of all prompts before the second ones."""
        began = time.perf_counter()
        scores = self._judge(**arguments)
        self.seconds += time.perf_counter() - began
        half = len(scores) // 2
        pairs = zip(scores[:half], scores[half:], strict=True)
        self.num_ties += sum(1 for first, second in pairs if first == second)
        return list(scores)


def peer(case: Case, folder: Path, started: float) -> dict[str, Any]:
    """Train, leave the policy in `folder`/peer, and say how long it took.

    Args:
        started: when the process began, in seconds since 1970.
    """
    from datasets import Dataset
    from transformers import AutoProcessor, TrainerCallback
    from trl.experimental.online_dpo import OnlineDPOTrainer

    from common.data.datasets import read_prompts

    class Timed(OnlineDPOTrainer):  # type: ignore[misc]
        """Knows how long its answers took."""

        generate_s = 0.0

        def _generate(self, *arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            answers = super()._generate(*arguments, **named)  # type: ignore[no-untyped-call]
            self.generate_s += time.perf_counter() - began
            return answers

    begins: list[float] = []
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *arguments: Any, **named: Any) -> None:
            begins.append(time.time())

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            ends.append(time.time())

    judge = TimedJudge(_judge(case, folder))
    processor = AutoProcessor.from_pretrained(folder / MODEL)
    prompts = read_prompts(folder / PROMPTS)
    trainer = Timed(
        model=_model(folder),
        reward_funcs=judge,
        args=_config(case, folder, processor.image_token_id),
        train_dataset=Dataset.from_list([row_of(prompt) for prompt in prompts]),
        processing_class=processor,
        callbacks=[Clock()],
    )
    steps = _steps(case)
    num_prompts = steps * case.prompts_per_step
    trainer.train()
    _save(trainer.model, folder)
    seconds = ends[-1] - ends[case.warmup - 1]
    return {
        **rates(
            seconds, steps - case.warmup, case.prompts_per_step, begins[0] - started
        ),
        "generate_s": round(trainer.generate_s / steps, 3),
        "judge_s": round(judge.seconds / steps, 3),
        "preferences": num_prompts - judge.num_ties,
        "tie_frac": judge.num_ties / num_prompts,
    }


def _steps(case: Case) -> int:
    return case.peer_steps or case.steps


def row_of(prompt: Prompt) -> dict[str, Any]:
    """A prompt as TRL's users write it; its truth is in columns for the judge."""
    from PIL import Image

    (message,) = prompt.messages
    question = "".join(part.text for part in message.parts if part.kind == "text")
    return {
        **(prompt.truth or {}),
        # The trainer itself adds the part of the picture.
        "prompt": [{"role": message.role, "content": question}],
        "image": Image.open(prompt.images[0].path),
    }


def _judge(case: Case, folder: Path) -> Judge:
    judge: Judge = getattr(online_judges, case.judge)
    if case.judge == "oracle":
        return partial(judge, end_id=end_id(folder))
    return judge


def _model(folder: Path) -> Any:
    """The model with its vision tower frozen, as ours is."""
    import torch
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(
        folder / MODEL, dtype=torch.float32
    )
    model.model.vision_tower.requires_grad_(False)
    return model


def _config(case: Case, folder: Path, image_token: int) -> Any:
    """The same optimizer, loss and sampling as ours; with gradient checkpointing, its default, it samples uncached."""
    from trl.experimental.online_dpo import OnlineDPOConfig

    return OnlineDPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=case.peer_micro_batch,
        gradient_accumulation_steps=case.prompts_per_step // case.peer_micro_batch,
        max_steps=_steps(case),
        learning_rate=case.lr,
        lr_scheduler_type=case.schedule,
        seed=case.seed,
        max_grad_norm=MAX_GRAD_NORM,
        beta=[BETA],
        temperature=TEMPERATURE,
        max_new_tokens=case.max_tokens,
        max_length=case.max_length + 1,
        # As our engines do: a sampled image token would have no picture.
        generation_kwargs={"suppress_tokens": [image_token]},
        gradient_checkpointing=False,
        # Weights stay in float32. A model that is bfloat16 itself would be faster, and lose most of every update.
        bf16=case.dtype == "bfloat16",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=_steps(case),
        disable_tqdm=True,
    )


def _save(model: Any, folder: Path) -> None:
    """The start policy's folder with the trained weights, under the names that vLLM reads."""
    from common.checkpoint.saving import save_model

    policy = folder / "peer"
    shutil.copytree(folder / MODEL, policy, ignore=shutil.ignore_patterns(WEIGHTS))
    save_model(model, policy)
