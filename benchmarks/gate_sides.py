"""The two sides of `benchmarks.numerics_gate`: a bfloat16 policy in this process, and a vLLM engine."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.engine.factory import make_engine
from benchmarks.step_model import SIZES, build, make_pairs
from common.chat import ChatEncoder
from common.checkpoint.layout import layout_of
from common.config import EngineOptions, Full, Lora, Model, Rollout, RunConfig, Tuning
from common.data.images import ImageStore
from common.records import LogprobProbe, PreferencePair, ProbeAnswer, WeightManifest
from learner.batch.collate import Collator
from learner.learner import Learner
from learner.model.merging import Survival
from learner.model.models import Models
from learner.model.policy import load_policy
from learner.probe import Probe
from learner.publisher import Arrays, package, package_adapter, plain_weights

SIZE = replace(SIZES["sweep"], completion_tokens=32)
MAX_LENGTH = 128
DTYPE = "bfloat16"
LARGEST_LOGIT = 20.0
ANSWERS = 8
GLOBAL_BATCH = 4
HEAD = "lm_head.weight"
SHARPENED = ("q_proj.weight", "k_proj.weight")
SHARPNESS = 4.0
"""As drawn, all tokens attend to all alike, whatever their queries and keys."""
Push = tuple[WeightManifest, Arrays]


def build_policy(folder: Path, device: str = "cpu") -> float:
    """Write the model, its head scaled; returns the mean of the largest logits on random pictures and words."""
    build(SIZE, folder, DTYPE)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    for name in weights:
        if name.endswith(SHARPENED):
            weights[name] = weights[name] * SHARPNESS
    save_file(weights, file, metadata={"format": "pt"})
    (head,) = [name for name in weights if name.endswith(HEAD)]
    answers = answers_of(ImageStore(folder.parent / "first_images"))
    for _ in range(2):
        side = Side(folder, Full(), answers, device)
        largest = side.largest_logit()
        if largest < 0.9 * LARGEST_LOGIT:
            weights[head] = weights[head] * (LARGEST_LOGIT / largest)
            save_file(weights, file, metadata={"format": "pt"})
    return largest


def answers_of(store: ImageStore) -> list[ProbeAnswer]:
    """Random words behind prompts with pictures."""
    first_word = 10
    answers: list[ProbeAnswer] = []
    generator = torch.Generator().manual_seed(0)
    for pair in make_pairs(SIZE, ANSWERS, store, offline=True):
        tokens = torch.randint(
            first_word, SIZE.vocabulary, (SIZE.completion_tokens,), generator=generator
        )
        answers.append(ProbeAnswer(pair.prompt, tuple(tokens.tolist())))
    return answers


def model_of(folder: Path, tuning: Tuning) -> Model:
    """The model's section of a config."""
    return Model(
        path=str(folder),
        dtype=DTYPE,
        max_length=MAX_LENGTH,
        tuning=tuning,
        freeze_vision=False,
    )


def start_engine(folder: Path, tuning: Tuning, device: str = "cpu") -> Any:
    """An asynchronous engine; to be called on the event loop that uses it."""
    options = EngineOptions(block_size=32, kv_cache_bytes=64 << 20, max_num_seqs=16)
    rollout = Rollout(num_gpus=int(device == "cuda"), engine=options)
    return make_engine(model_of(folder, tuning), rollout, timeout_s=300)


class Side:
    """A policy that moves at random, and what a learner would push of it."""

    def __init__(
        self,
        folder: Path,
        tuning: Tuning,
        answers: Sequence[ProbeAnswer],
        device: str = "cpu",
    ) -> None:
        self._folder = folder
        self._tuning = tuning
        model = model_of(folder, tuning)
        self.policy = load_policy(model, folder, device=device)
        encoder = ChatEncoder(folder, MAX_LENGTH)
        holder: Any = SimpleNamespace(module=self.policy)
        models = Models(
            engine=holder,
            reference=self.policy,
            collator=Collator(encoder),
            device=torch.device(device),
            dtype=torch.bfloat16,
        )
        self.models = models
        self.probe = Probe(models, answers, rows=ANSWERS)
        self.start = self.probe.now()
        self._answers = answers
        self._start = self._weights()
        self._generator = torch.Generator(device).manual_seed(1)

    @torch.no_grad()
    def largest_logit(self) -> float:
        """Mean over the places of the answers."""
        collator = self.models.collator
        largest = []
        for answer in self._answers:
            batch = collator.single(answer.prompt, answer.token_ids)
            batch = batch.to(self.models.device, torch.bfloat16)
            logits = self.policy.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                **batch.media,
            ).logits
            largest.append(logits[batch.response_mask].float().amax(-1).mean())
        return float(torch.stack(largest).mean())

    @torch.no_grad()
    def move(
        self, scale: float, wanted: Callable[[str], bool] = lambda name: True
    ) -> None:
        """Add noise of `scale` standard deviations to every trained weight whose name is wanted."""
        for name, weight in self.policy.named_parameters():
            if not weight.requires_grad or not wanted(name):
                continue
            noise = torch.randn(
                weight.shape, generator=self._generator, device=weight.device
            )
            # A new adapter's B is zero: it moves as far as A.
            spread = float(weight.float().std()) if weight.numel() > 1 else 1.0
            step = scale * (spread or 0.02) * noise
            weight.copy_((weight.float() + step).to(weight.dtype))

    @torch.no_grad()
    def restore(self) -> None:
        """Back to the start policy."""
        for name, weight in self.policy.named_parameters():
            weight.copy_(self._start[name])

    def publish(self, version: int) -> Push:
        """As a learner does."""
        gathered = dict(self.policy.named_parameters())
        if isinstance(self._tuning, Lora):
            return package_adapter(version, gathered, self._tuning, self.probe.now())
        current = {
            name.removeprefix("net."): value.detach().to("cpu", copy=True)
            for name, value in gathered.items()
        }
        layout = layout_of(str(self._folder))
        return package(version, layout, current, [], self.probe.now())

    def start_arrays(self) -> Arrays:
        """Those of the start policy."""
        layout = layout_of(str(self._folder))
        named: Mapping[str, Tensor] = {
            name.removeprefix("net."): value.cpu()
            for name, value in self._start.items()
        }
        return package(0, layout, named, [], None)[1]

    def _weights(self) -> dict[str, Tensor]:
        weights = {}
        for name, value in self.policy.named_parameters():
            weights[name] = value.detach().clone()
        return weights


def moved(before: LogprobProbe, now: LogprobProbe) -> float:
    """Mean |Δ log-prob| of the answers' tokens from one set of weights to another, nats."""
    changes: list[float] = []
    for earlier, later in zip(before.logprobs, now.logprobs, strict=True):
        for first, second in zip(earlier, later, strict=True):
            token = next(iter(first))
            changes.append(abs(second[token] - first[token]))
    return sum(changes) / len(changes)


def probe_bytes(probe: LogprobProbe) -> int:
    """Of a probe on its way with the manifest."""
    return len(pickle.dumps(probe))


class Trained:
    """A learner with LoRA at the learning rate of the presets, and the pairs that it trains on."""

    def __init__(self, learner: Learner, pairs: list[PreferencePair]) -> None:
        self.learner = learner
        self.start: LogprobProbe
        self._pairs = pairs

    def batch(self, step: int) -> list[PreferencePair]:
        """Of a step."""
        first = step * GLOBAL_BATCH % len(self._pairs)
        return self._pairs[first : first + GLOBAL_BATCH]

    def merged(self, version: int) -> Push:
        """What it would push with `model.tuning.push = merged`."""
        learner = self.learner
        manifest, _ = learner.publish(version)
        gathered = learner.models.engine.gather_weights()
        assert manifest is not None
        assert gathered is not None
        survival = Survival()
        tuning = learner.config.model.tuning
        current, _ = plain_weights(gathered, tuning, learner.policy, survival)
        layout = layout_of(learner.model_path)
        whole, arrays = package(version, layout, current, [], manifest.probe)
        return replace(whole, merged_survives=survival.share), arrays


def lora_learner(
    folder: Path,
    tuning: Lora,
    store: ImageStore,
    answers: Sequence[ProbeAnswer],
    device: str = "cpu",
) -> Trained:
    """A real learner before its first step."""
    config = RunConfig.model_validate(
        {
            "run": {"dir": str(folder / "run")},
            "model": model_of(folder / "model", tuning).model_dump(),
            "mixture": {"online_fraction": 1.0},
            "learner": {
                "engine": "deepspeed",
                "num_gpus": int(device == "cuda"),
                "num_steps": 1000,
                "global_batch": GLOBAL_BATCH,
                "micro_batch": GLOBAL_BATCH,
                "optimizer": {"lr": 1e-6, "warmup_steps": 0},
            },
        }
    )
    learner = Learner(config)
    learner.start()
    trained = Trained(learner, make_pairs(SIZE, 4 * GLOBAL_BATCH, store, offline=False))
    trained.start = learner.set_probe(answers)
    return trained
