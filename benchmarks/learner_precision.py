"""What bfloat16 does to the learner's numbers: `python -m benchmarks.learner_precision [--device cuda --out FILE]`.

The same preference pairs go through collation, log-probs, every loss and one backward pass three times: in float64 on
the CPU (the truth), in float32 and in bfloat16 on the device. Policy and reference differ by a small fixed
disturbance of the language side, so that margins are not zero. Errors are against the truth:

    token_logprob     max |Δ| in nats, over all response tokens of the policy
    margin            max |Δ| of delta = (logp - ref)(y+) - (logp - ref)(y-), in nats per pair
    loss              per kind, |Δ| of the batch mean
    gradient          ||g - g64|| / ||g64|| over all trainable parameters, sigmoid loss
    tokens_equal      whether collation gave the same ids and masks on the device

The last line is one JSON object; `ratio` is bfloat16's gradient error over float32's. Without a GPU (or with
`--device cpu`) the device is the CPU, and `device` says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measured_on import measured_on
from common.chat import ChatEncoder
from common.config import Model
from common.config.losses import Hinge, Ipo, Robust, Sigmoid, Simpo
from common.data.images import ImageStore
from common.model_parts import is_vision_tower
from common.records import PreferencePair, Response
from common.shapes.language import caption
from common.shapes.prompts import caption_prompts
from common.shapes.scenes import split_scenes
from learner.batch.collate import Collator, EncodedPair, RowBatch
from learner.losses import pair_losses
from learner.losses.pair_logps import pair_logps
from learner.model.policy import Policy, load_model

DISTURBANCE = 0.02
LOSSES = (Sigmoid(), Robust(), Ipo(), Hinge(), Simpo())


def caption_pairs(num: int, seed: int, store: ImageStore) -> list[PreferencePair]:
    """Each picture's caption over the next picture's."""
    prompts = caption_prompts("train", num, seed, store)
    texts = [caption(scene) for scene in split_scenes("train", num, seed=seed)]
    # The last picture's rejected caption is the first one's.
    next_texts = texts[1:] + texts[:1]
    pairs = []
    for prompt, text, next_text in zip(prompts, texts, next_texts, strict=True):
        pair = PreferencePair(
            id=prompt.id,
            prompt=prompt,
            chosen=Response(text),
            rejected=Response(next_text),
            source="benchmark",
        )
        pairs.append(pair)
    return pairs


def make_policies(path: str, seed: int) -> tuple[Policy, Policy]:
    """Policy and reference in float64: the disturbance is relative to the spread of each tensor."""
    reference = Policy(load_model(path, torch.float64)).eval()
    policy = Policy(load_model(path, torch.float64)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        trains = not is_vision_tower(name)
        parameter.requires_grad_(trains)
        # Matrices only: norms and biases stay.
        if trains and parameter.ndim > 1:
            _disturb(parameter, generator)
    return policy, reference


@torch.no_grad()
def _disturb(parameter: Tensor, generator: torch.Generator) -> None:
    """Add noise of DISTURBANCE times the tensor's standard deviation, in place."""
    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    parameter.add_(DISTURBANCE * parameter.std() * noise)


def measure(policy: Policy, reference: Policy, batch: RowBatch) -> dict[str, Any]:
    """Log-probs, losses and the sigmoid loss's gradient, all brought to float64 on the CPU. Moves nothing."""
    policy.zero_grad(set_to_none=True)
    logps = policy(batch)
    with torch.no_grad():
        reference_logps = reference(batch)
    pairs = pair_logps(logps, reference_logps)
    pair_losses(pairs, Sigmoid()).mean().backward()
    gradients = []
    for parameter in policy.parameters():
        if parameter.grad is not None:
            gradient = parameter.grad.double().cpu()
            gradients.append(gradient.reshape(-1))
    losses = {}
    for loss in LOSSES:
        values = pair_losses(pairs, loss).detach()
        losses[loss.kind] = values.double().mean().item()
    return {
        "token_logps": logps.token_logps.detach().double().cpu(),
        "delta": pairs.delta.detach().double().cpu(),
        "losses": losses,
        "gradient": torch.cat(gradients),
    }


def errors(measured: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """Differences to the truth, as the module's docstring names them."""

    def largest(name: str) -> float:
        difference: Tensor = measured[name] - truth[name]
        return float(difference.abs().max())

    loss_errors = {}
    for kind, loss in measured["losses"].items():
        loss_errors[kind] = abs(loss - truth["losses"][kind])
    gradient = measured["gradient"]
    true_gradient = truth["gradient"]
    gradient_error = (gradient - true_gradient).norm() / true_gradient.norm()
    return {
        "token_logprob": largest("token_logps"),
        "margin": largest("delta"),
        "loss": loss_errors,
        "gradient": float(gradient_error),
        "finite": bool(gradient.isfinite().all()),
    }


def run(model: str, device: str, num_pairs: int, seed: int) -> dict[str, Any]:
    """The whole comparison."""
    batch = make_batch(model, num_pairs, seed)
    policy, reference = make_policies(model, seed)
    truth = measure(policy, reference, batch.to("cpu", torch.float64))
    result: dict[str, Any] = {
        "margin_scale": float(truth["delta"].abs().mean()),
        "loss": truth["losses"],
    }
    for dtype in (torch.float32, torch.bfloat16):
        policy, reference = make_policies(model, seed)
        policy = policy.to(device, dtype)
        reference = reference.to(device, dtype)
        moved = batch.to(device, dtype)
        measured = measure(policy, reference, moved)
        dtype_name = str(dtype).removeprefix("torch.")
        result[dtype_name] = errors(measured, truth)
        result["tokens_equal"] = same_tokens(moved, batch)
    result["ratio"] = result["bfloat16"]["gradient"] / result["float32"]["gradient"]
    return result


def make_batch(model: str, num_pairs: int, seed: int) -> RowBatch:
    """The plain batch of the caption pairs, on the CPU."""
    collator = Collator(ChatEncoder(model, Model().max_length))
    encoded: list[EncodedPair] = []
    with tempfile.TemporaryDirectory() as images:
        for pair in caption_pairs(num_pairs, seed, ImageStore(Path(images))):
            answer = collator.encode(pair)
            assert isinstance(answer, EncodedPair), f"refused: {answer}"
            encoded.append(answer)
    return collator.collate(encoded)


def same_tokens(moved: RowBatch, batch: RowBatch) -> bool:
    """Whether ids and response masks are equal; `batch` is on the CPU."""
    same_ids = torch.equal(moved.input_ids.cpu(), batch.input_ids)
    same_mask = torch.equal(moved.response_mask.cpu(), batch.response_mask)
    return same_ids and same_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=Model().path, help="Hugging Face directory")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    options = parser.parse_args()
    device = "cpu"
    device_name = "cpu (bfloat16 on the CPU, no GPU was used)"
    if options.device == "cuda" and torch.cuda.is_available():
        device = "cuda"
        device_name = torch.cuda.get_device_name()
    result = run(options.model, device, options.pairs, options.seed)
    packages = ("torch", "transformers")
    facts = {
        "benchmark": "learner_precision",
        "device": device_name,
        "pairs": options.pairs,
        **measured_on(packages),
    }
    line = json.dumps({**facts, **result})
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
