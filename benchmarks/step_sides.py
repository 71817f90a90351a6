"""The two sides of `benchmarks.learner_step`, each to be run in a process of its own. Both return the same figures."""

from __future__ import annotations

import ctypes
import gc
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.step_model import make_pairs, size_of, trl_row
from common.config import RunConfig
from common.data.images import ImageStore
from common.records import PreferencePair

LR = 1e-4
BETA = 0.1


class Memory:
    """Peak above what was held at the start: resident memory on a CPU, allocated memory on a GPU. MiB."""

    def __init__(self, device: str) -> None:
        gc.collect()
        self._cuda = device == "cuda"
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated() / 2**20
        else:
            # Freed pages that the process still has would hide what comes.
            ctypes.CDLL(None).malloc_trim(0)
            # Resets VmHWM: the peak starts again from what is held now.
            Path("/proc/self/clear_refs").write_text("5")
            self._start = _status("VmRSS")

    def above_start(self) -> float:
        """Now minus then."""
        if self._cuda:
            import torch

            return torch.cuda.max_memory_allocated() / 2**20 - self._start
        return _status("VmHWM") - self._start


def _status(field: str) -> float:
    """A memory field of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {field} in /proc/self/status")


def gemm_rates(
    device: str,
    dtype: str,
    side: int = 2048,
    repeats: int = 30,
) -> dict[str, float]:
    """Floating-point operations per second of a large product at this process's threads, by torch.matmul and the best.

    On a CPU torch has two libraries: matmul takes MKL's product, half as fast as oneDNN's on some processors.
    """
    import torch

    from learner.forward.onednn import Matmul, onednn_matmul, torch_matmul

    side = 8192 if device == "cuda" else side
    left = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))
    right = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))

    def rate(matmul: Matmul) -> float:
        best = float("inf")
        for _ in range(repeats):
            started = time.perf_counter()
            product = matmul(left, right)
            if device == "cuda":
                # Waits for the GPU.
                product[0, 0].item()
            best = min(best, time.perf_counter() - started)
        return 2 * side**3 / best

    matmul = rate(torch_matmul)
    onednn = 0.0
    if device == "cpu" and torch.backends.mkldnn.is_available():
        onednn = rate(onednn_matmul)
    return {"gemm_flops": max(matmul, onednn), "matmul_flops": matmul}


def run_config(args: Any, cache: str, input_workers: int = 0) -> RunConfig:
    """Our side's configuration: one forward per batch, everything else as the defaults have it."""
    cuda = args.device == "cuda"
    tuning: dict[str, Any] = {"kind": "full"}
    if args.tuning == "lora":
        tuning = {"kind": "lora", "r": 128, "alpha": 256}
    return RunConfig.model_validate(
        {
            "model": {
                "path": args.model,
                "max_length": 8192,
                "dtype": args.dtype,
                "tuning": tuning,
            },
            "mixture": {"online_fraction": 1.0},
            "learner": {
                "engine": "deepspeed" if cuda else "torch",
                "num_gpus": int(cuda),
                "num_steps": args.steps + 1,
                "global_batch": args.batch,
                "micro_batch": args.micro_batch,
                "gradient_checkpointing": False,
                "input_workers": input_workers,
                "loss": {"beta": BETA},
                "optimizer": {"lr": LR, "warmup_steps": 0, "schedule": "constant"},
                "fast": {"reference_cache": cache, "vision_cache_mb": 0},
            },
        }
    )


def ours(args: Any) -> dict[str, Any]:
    """Our learner as a run has it. `fill` only writes the reference cache that `cached` reads."""
    from learner.learner import Learner

    cached = args.side in ("cached", "fill")
    cache = str(Path(args.model) / "reference") if cached else "off"
    trainer = Learner(run_config(args, cache, int(args.side == "ahead")))
    facts = trainer.start()
    pairs = _pairs(args, cached)
    if args.side == "fill":
        for start in range(0, len(pairs), args.batch):
            trainer.fill_reference_cache(pairs[start : start + args.batch])
        return {}
    memory = Memory(args.device)
    losses = []
    ends = []
    input_s = []
    for step in range(args.steps + 1):
        start = step * args.batch
        stop = start + args.batch
        # As a run's loop does: the next batch is known before the step begins.
        trainer.prepare(step + 1, dict(enumerate(pairs[stop : stop + args.batch])))
        result, dropped = trainer.step(step, pairs[start:stop])
        assert not dropped, dropped
        losses.append(result.metrics["loss"])
        input_s.append(result.metrics["time/input_s"])
        ends.append(time.perf_counter())
    trainer.close()
    peak = memory.above_start()
    rates = gemm_rates(args.device, args.dtype)
    figures = _figures(args, ends, losses, peak)
    # The first step warms up and is not counted.
    input_of_step_s = sum(input_s[1:]) / args.steps
    return {
        **figures,
        **rates,
        "input_s": input_of_step_s,
        "input_share": input_of_step_s / figures["step_s"],
        "fallbacks": facts["fallbacks"],
    }


def peer(args: Any) -> dict[str, Any]:
    """TRL's DPOTrainer. It refuses precomputed reference log-probs for images and has no padding-free path for now."""
    import torch
    from datasets import Dataset
    from transformers import AutoProcessor, TrainerCallback
    from trl.trainer.dpo_trainer import DPOTrainer

    class Ordered(DPOTrainer):  # type: ignore[misc]
        """Batches in our order, and every loss as it is computed."""

        losses: list[float] = []  # noqa: RUF012

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            result = super().compute_loss(*args, **kwargs)  # type: ignore[no-untyped-call]
            loss = result[0] if isinstance(result, tuple) else result
            self.losses.append(float(loss.detach()))
            return result

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    pairs = _pairs(args, False)
    liger = args.device == "cuda" and find_spec("liger_kernel") is not None
    trainer = Ordered(
        model=_peer_model(args),
        args=_peer_config(args, liger),
        train_dataset=Dataset.from_list([trl_row(pair) for pair in pairs]),
        processing_class=AutoProcessor.from_pretrained(args.model),
        callbacks=[Clock()],
        peft_config=_peer_lora() if args.tuning == "lora" else None,
    )
    memory = Memory(args.device)
    trainer.train()
    # One loss per micro-batch, in order.
    num = args.batch // args.micro_batch
    losses = []
    for start in range(0, len(trainer.losses), num):
        step_losses = trainer.losses[start : start + num]
        losses.append(sum(step_losses) / num)
    figures = _figures(args, ends, losses, memory.above_start())
    return {**figures, "liger_kernel": liger}


def _peer_model(args: Any) -> Any:
    """The model with its vision tower frozen, as ours is."""
    import torch
    from transformers import LlavaForConditionalGeneration

    dtype = getattr(torch, args.dtype)
    model = LlavaForConditionalGeneration.from_pretrained(args.model, dtype=dtype)
    model.model.vision_tower.requires_grad_(False)
    return model


def _peer_lora() -> Any:
    """Adapters on the same layers as ours."""
    from peft import LoraConfig

    projections = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    return LoraConfig(
        r=128,
        lora_alpha=256,
        target_modules=rf".*language_model.*\.({projections})",
        bias="none",
    )


def _peer_config(args: Any, liger: bool) -> Any:
    """The same optimizer, batch and loss as ours."""
    from trl.trainer.dpo_config import DPOConfig

    return DPOConfig(
        output_dir=str(Path(args.model) / "trl"),
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=args.batch // args.micro_batch,
        max_steps=args.steps + 1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        beta=BETA,
        max_length=None,
        bf16=args.dtype == "bfloat16",
        use_cpu=args.device == "cpu",
        gradient_checkpointing=False,
        use_liger_kernel=liger,
        report_to="none",
        save_strategy="no",
        logging_steps=args.steps + 1,
        disable_tqdm=True,
    )


def _pairs(args: Any, offline: bool) -> list[PreferencePair]:
    store = ImageStore(Path(args.images))
    return make_pairs(
        size_of(args),
        args.batch * (args.steps + 1),
        store,
        offline,
        args.pairs_per_prompt,
    )


def _figures(
    args: Any,
    ends: list[float],
    losses: list[float],
    peak: float,
) -> dict[str, Any]:
    """The first step warms up and is not counted; everything between two ends is, collation included."""
    step = (ends[-1] - ends[0]) / args.steps
    return {
        "step_s": step,
        "pairs_per_s": args.batch / step,
        "peak_mib": peak,
        "losses": losses,
    }
