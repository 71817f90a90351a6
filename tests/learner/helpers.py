"""Pairs on random pictures and run configurations around the tiny model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import learner.losses
import learner.update
from common.chat import ChatEncoder
from common.config import Model, RunConfig
from common.config.losses import Loss, loss_sections
from common.data.images import ImageStore
from common.records import Message, Part, PreferencePair, Prompt, Response
from common.weights import from_arrays
from learner.batch.collate import Collator, EncodedPair, RowBatch
from learner.learner import Learner
from learner.model.models import Models
from learner.model.policy import Policy, load_model, load_policy, load_reference
from tests.tiny_models import make_prompt, tiny_llava

# Removed when the tests end; each run has a numbered folder in it.
_RUNS = TemporaryDirectory(prefix="sightline-tests-")
_NUMBERS = count()
LORA = {"kind": "lora", "r": 4, "alpha": 8, "push": "merged"}
PROBE = (5, 6, 7)
"""Token ids of a response whose log-probs are compared."""
TUNINGS = pytest.mark.parametrize("tuning", [None, LORA], ids=["full", "lora"])
CHOSEN = (
    "There is a red circle at the top.",
    "There is a blue square.",
    "There is a green circle on the left.",
)
REJECTED = (
    "There is a yellow square.",
    "There is a red triangle at the bottom on the right.",
    "no",
)


def written(learner: Learner) -> None:
    """Wait until what a learner saves or exports is on disk."""
    while (report := learner.written()) is None:
        time.sleep(0.001)
    assert report.fault is None, report.fault


def run_config(
    engine: str = "torch",
    tuning: dict[str, Any] | None = None,
    model: Path | None = None,
    **learner: Any,
) -> RunConfig:
    """A run of 20 steps on the tiny model, learning fast enough that every step shows; with a folder of its own."""
    return RunConfig.model_validate(
        {
            "run": {"dir": f"{_RUNS.name}/{next(_NUMBERS)}"},
            "model": {
                "path": str(model or tiny_llava()),
                "tuning": tuning or {"kind": "full"},
                "max_length": 256,
            },
            "mixture": {"online_fraction": 1.0},
            "learner": {
                "engine": engine,
                "num_steps": 20,
                "global_batch": 6,
                "micro_batch": 4,
                "optimizer": {"lr": 1e-3, "warmup_steps": 2},
                **learner,
            },
        }
    )


def with_model(config: RunConfig, **settings: Any) -> RunConfig:
    """The run with other settings of its model."""
    model = config.model.model_copy(update=settings)
    return config.model_copy(update={"model": model})


def loss_of_kind(kind: str, **settings: Any) -> Loss:
    """The settings of a loss by its name."""
    return loss_sections()[kind](**settings)


def started(config: RunConfig) -> Learner:
    """A learner that is ready for its first step."""
    trainer = Learner(config)
    trainer.start()
    return trainer


def encoder_of(trainer: Learner) -> ChatEncoder:
    return trainer.models.collator.encoder


def train(
    trainer: Learner,
    batches: Sequence[list[PreferencePair]],
    first_step: int = 0,
) -> list[dict[str, float]]:
    """The metrics of a step on each batch."""
    metrics: list[dict[str, float]] = []
    for step, batch in enumerate(batches, start=first_step):
        result, _ = trainer.step(step, batch)
        metrics.append(dict(result.metrics))
    return metrics


def losses_of(metrics: Sequence[Mapping[str, float]]) -> list[float]:
    """The loss of every step."""
    return [of_step["loss"] for of_step in metrics]


def weights_of(trainer: Learner) -> dict[str, Any]:
    """What a push would send: the policy's arrays by hub name."""
    _, arrays = trainer.publish(0)
    return arrays


def change_norm(trainer: Learner) -> float:
    """How far the weights are from the start."""
    manifest, _ = trainer.publish(1)
    assert manifest is not None
    return manifest.change_norm


@torch.no_grad()
def probed(model: Any, trainer: Learner, prompt: Prompt) -> torch.Tensor:
    """Log-probs of the probe behind a prompt under a Hugging Face model, [tokens]."""
    batch = trainer.models.collator.single(prompt, PROBE)
    return Policy(model.eval())(batch).token_logps[0]


def model_of_push(
    arrays: dict[str, Any],
    model_path: Path,
    folder: Path,
) -> Any:
    """The model that transformers loads from the arrays of a push, put in the place of a checkpoint's weights."""
    shutil.copytree(model_path, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(from_arrays(arrays), folder / "model.safetensors")
    return load_model(folder, torch.float32)


def spoil_losses(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """From now on every pair's loss is multiplied by this factor, say NaN."""
    original = learner.losses.pair_losses

    def spoilt(*args: Any) -> torch.Tensor:
        return original(*args) * factor

    monkeypatch.setattr(learner.update, "pair_losses", spoilt)


def models_of(policies: tuple[Policy, Policy], collator: Collator) -> Models:
    """Policy and reference in float64 in one process, behind an engine that only accumulates gradients."""
    policy, reference = policies
    engine: Any = SimpleNamespace(
        rank=0, world_size=1, module=policy, backward=lambda loss: loss.backward()
    )
    return Models(engine, reference, collator, torch.device("cpu"), torch.float64)


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    """A copy of every gradient by parameter name."""
    copies: dict[str, torch.Tensor] = {}
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            copies[name] = parameter.grad.clone()
    return copies


def encoded(collator: Collator, pairs: list[PreferencePair]) -> list[EncodedPair]:
    """The pairs as tensors; none may be refused."""
    results = [collator.encode(pair) for pair in pairs]
    assert all(isinstance(result, EncodedPair) for result in results)
    return results


def log_softmax_of(policy: Policy, batch: RowBatch) -> torch.Tensor:
    """Log-softmax [rows, tokens, vocabulary] of transformers' own forward; position i predicts token i + 1."""
    output = policy.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        **batch.media,
    )
    table: torch.Tensor = output.logits.log_softmax(-1)
    return table


def assert_same_gradients(
    actual: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
) -> None:
    """To 1e-5 of each gradient's norm: a tree's norms and rotary embedding are float32 in any model."""
    for name, value in expected.items():
        error = (actual[name] - value).norm()
        assert error <= 1e-5 * value.norm() + 1e-9, name


def assert_same_arrays(
    actual: Mapping[str, Any],
    expected: Mapping[str, Any],
) -> None:
    """Bit by bit."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def assert_same_weights(
    weights: Mapping[str, Any],
    expected: Mapping[str, Any],
    lr: float = 1e-3,
) -> None:
    """After the same few steps of AdamW with this learning rate, up to the rounding of gradients.

    AdamW divides a gradient by its own size. Where a sum cancels to nearly nothing, its rounding moves that weight by
    a visible share of a step: at most 5 %, and 0.1 % over all weights (root mean square). A gradient or a moment that
    is lost moves whole tensors by whole steps.
    """
    assert weights.keys() == expected.keys()
    errors = []
    for name, value in expected.items():
        # In float64, or the subtraction would round.
        actual = np.asarray(weights[name], np.float64)
        error = np.abs(actual - np.asarray(value))
        assert error.max() <= 0.05 * lr, name
        errors.append(error.ravel())
    squares = np.concatenate(errors) ** 2
    root_mean_square = np.sqrt(np.mean(squares))
    assert root_mean_square <= 1e-3 * lr


def make_pairs(store: ImageStore, num: int, first: int = 0) -> list[PreferencePair]:
    """Pairs with responses of different lengths, of two sources in turn."""
    pairs = []
    for seed in range(first, first + num):
        online = seed % 2 == 0
        pair = PreferencePair(
            id=f"pair-{seed}",
            prompt=make_prompt(store, seed),
            chosen=Response(CHOSEN[seed % 3]),
            rejected=Response(REJECTED[seed % 3]),
            source="online" if online else "bdhs",
            weight_version=0 if online else None,
        )
        pairs.append(pair)
    return pairs


def offline(pairs: list[PreferencePair]) -> list[PreferencePair]:
    """The same pairs as if they came from a file: nobody sampled them, so their reference log-probs are kept."""
    return [replace(pair, weight_version=None) for pair in pairs]


def identical(pair: PreferencePair) -> PreferencePair:
    """The pair with one answer on both sides, which the learner refuses."""
    return replace(pair, rejected=pair.chosen)


def without_image(pair: PreferencePair) -> PreferencePair:
    """The pair with a question that has no picture."""
    return replace(pair, prompt=text_prompt())


def diverged_policies(model_path: Path, scale: float) -> tuple[Policy, Policy]:
    """A float64 policy, and the reference it has left: its head is moved by normal noise times `scale`."""
    policy = load_policy(Model(), model_path).double()
    reference = load_reference(Model(), model_path).double()
    torch.manual_seed(1)
    with torch.no_grad():
        head = policy.model.lm_head.weight
        head.add_(torch.randn_like(head) * scale)
    return policy, reference


def text_prompt(text: str = "Describe the image.") -> Prompt:
    """A prompt without a picture."""
    message = Message("user", (Part("text", text),))
    return Prompt("text", (message,), ())
