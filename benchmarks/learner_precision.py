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
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    """Each picture's own caption over the next picture's."""
    prompts = caption_prompts("train", num, seed, store)
    texts = [caption(scene) for scene in split_scenes("train", num, seed=seed)]
    sides = [
        (Response(text), Response(texts[(index + 1) % num]))
        for index, text in enumerate(texts)
    ]
    return [
        PreferencePair(prompt.id, prompt, chosen, rejected, "benchmark")
        for prompt, (chosen, rejected) in zip(prompts, sides, strict=True)
    ]


def make_policies(path: str, seed: int) -> tuple[Policy, Policy]:
    """Policy and reference in float64: the disturbance is relative to each tensor's own spread."""
    reference, policy = (
        Policy(load_model(path, torch.float64)).eval() for _ in range(2)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(not is_vision_tower(name))
            if not is_vision_tower(name) and parameter.ndim > 1:
                noise = torch.randn(
                    parameter.shape, generator=generator, dtype=torch.float64
                )
                parameter.add_(DISTURBANCE * parameter.std() * noise)
    return policy, reference


def measure(policy: Policy, reference: Policy, batch: RowBatch) -> dict[str, Any]:
    """Log-probs, losses and the sigmoid loss's gradient, all brought to float64 on the CPU. Moves nothing."""
    policy.zero_grad(set_to_none=True)
    logps = policy(batch)
    with torch.no_grad():
        reference_logps = reference(batch)
    pairs = pair_logps(logps, reference_logps)
    pair_losses(pairs, Sigmoid()).mean().backward()
    gradient = torch.cat(
        [
            p.grad.double().cpu().reshape(-1)
            for p in policy.parameters()
            if p.grad is not None
        ]
    )
    losses = {
        loss.kind: pair_losses(pairs, loss).detach().double().mean().item()
        for loss in LOSSES
    }
    return {
        "token_logps": logps.token_logps.detach().double().cpu(),
        "delta": pairs.delta.detach().double().cpu(),
        "losses": losses,
        "gradient": gradient,
    }


def errors(found: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """Differences to the truth, as the module's docstring names them."""

    def largest(name: str) -> float:
        difference: Tensor = found[name] - truth[name]
        return float(difference.abs().max())

    return {
        "token_logprob": largest("token_logps"),
        "margin": largest("delta"),
        "loss": {
            kind: abs(loss - truth["losses"][kind])
            for kind, loss in found["losses"].items()
        },
        "gradient": float(
            (found["gradient"] - truth["gradient"]).norm() / truth["gradient"].norm()
        ),
        "finite": bool(found["gradient"].isfinite().all()),
    }


def run(model: str, device: str, num_pairs: int, seed: int) -> dict[str, Any]:
    """The whole comparison."""
    with tempfile.TemporaryDirectory() as images:
        pairs = caption_pairs(num_pairs, seed, ImageStore(Path(images)))
        collator = Collator(ChatEncoder(model, Model().max_length))
        encoded = [
            pair
            for pair in map(collator.encode, pairs)
            if isinstance(pair, EncodedPair)
        ]
    assert len(encoded) == num_pairs, f"{num_pairs - len(encoded)} pairs were refused"
    batch = collator.collate(encoded)
    policy, reference = make_policies(model, seed)
    truth = measure(policy, reference, batch.to("cpu", torch.float64))
    result: dict[str, Any] = {
        "margin_scale": float(truth["delta"].abs().mean()),
        "loss": truth["losses"],
    }
    for dtype in (torch.float32, torch.bfloat16):
        policy, reference = make_policies(model, seed)
        moved = batch.to(device, dtype)
        found = measure(policy.to(device, dtype), reference.to(device, dtype), moved)
        result[str(dtype).removeprefix("torch.")] = errors(found, truth)
        same = torch.equal(moved.input_ids.cpu(), batch.input_ids)
        result["tokens_equal"] = same and torch.equal(
            moved.response_mask.cpu(), batch.response_mask
        )
    result["ratio"] = result["bfloat16"]["gradient"] / result["float32"]["gradient"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=Model().path, help="Hugging Face directory")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    options = parser.parse_args()
    cuda = options.device == "cuda" and torch.cuda.is_available()
    name = (
        torch.cuda.get_device_name()
        if cuda
        else "cpu (bfloat16 on the CPU, no GPU was used)"
    )
    result = run(options.model, "cuda" if cuda else "cpu", options.pairs, options.seed)
    versions = {
        package: metadata.version(package) for package in ("torch", "transformers")
    }
    facts = {
        "benchmark": "learner_precision",
        "device": name,
        "pairs": options.pairs,
        "versions": versions,
    }
    line = json.dumps({**facts, **result})
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
