"""What a family is in the tests: its tiny model on disk, pictures for it, and what is claimed of it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors.torch import save_file

from common.model_parts import vision_side_parameters
from tests.tiny_models import CACHE

Weights: TypeAlias = dict[str, torch.Tensor]
Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

_FORMAT = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A family, with a random model of it that is built once and kept under `.cache/tiny_models`.

    Attributes:
        name: transformers' `model_type`, or another where two architectures share one.
        title: the family's name, and a published model of it.
        make: the model in float32, and its processor with tokenizer and chat template.
        published: patterns of module names, and what published checkpoints write for them; the first match counts.
        sizes: of pictures that differ in their number of tokens where the family's do.
        transposed: endings of tensors whose last two dimensions published checkpoints exchange.
        checkpoint_only: tensors that only a published checkpoint has, made from all others.
        engine_dtype: what vLLM's CPU build runs the family in.
        runs_on_cpu: whether vLLM's CPU build computes what transformers does.
        engine_tolerance: largest difference in nats between vLLM's and transformers' log-prob of a token.
        learner_tolerance: the same between the learner's and transformers' sum over an answer, in float64.
        rows_because: why the learner takes plain rows, None where it takes a tree.
        is_shortened: whether BDHS can leave image tokens out.
        remark: what else a person should know, a clause for the table in docs/models.md.
        missing_package: what the processor needs and the pinned environment lacks, None if nothing.
    """

    name: str
    title: str
    make: Callable[[], tuple[Any, Any]]
    published: tuple[tuple[str, str], ...]
    sizes: tuple[Size, ...]
    transposed: tuple[str, ...] = ()
    checkpoint_only: Callable[[Weights], Weights] = field(default=lambda weights: {})
    missing_package: str | None = None
    engine_dtype: Literal["float32", "bfloat16"] = "float32"
    engine_tolerance: float = 1e-5
    runs_on_cpu: bool = True
    learner_tolerance: float = 1e-9
    rows_because: str | None = None
    is_shortened: bool = False
    remark: str = ""

    def directory(self) -> Path:
        """The model directory; built at the first call, safe against other processes doing the same."""
        target = CACHE / f"families-v{_FORMAT}-{self.name}"
        if not target.exists():
            partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
            self.build(partial)
            try:
                partial.rename(target)
            except OSError:
                shutil.rmtree(partial)
        return target

    def build(self, out: Path) -> None:
        """Write config, processor, tokenizer, chat template and weights as a published checkpoint has them."""
        out.mkdir(parents=True)
        torch.manual_seed(0)
        model, processor = self.make()
        widen(model)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(out)
        model.generation_config.save_pretrained(out)
        processor.save_pretrained(out)
        weights = self.published_weights(model)
        save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})

    def published_weights(self, model: Any) -> Weights:
        """A model's tensors under published names; a head that is tied to the embedding is left out."""
        state = dict(model.state_dict())
        for tied in model.all_tied_weights_keys:
            state.pop(tied, None)
        weights = {}
        for name, value in state.items():
            if name.endswith(self.transposed or ("\0",)):
                value = value.transpose(-1, -2)
            weights[published_name(name, self.published)] = value.contiguous()
        return weights | self.checkpoint_only(weights)


def published_name(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    """The first pattern that matches at the start of a module name is replaced."""
    for pattern, replacement in patterns:
        renamed, num_matches = re.subn(f"^{pattern}", replacement, name)
        if num_matches:
            return renamed
    return name


def widen(model: torch.nn.Module) -> None:
    """Pictures must change the answers, and matrices of 0.02 would hardly let them."""
    with torch.no_grad():
        for parameter in vision_side_parameters(model):
            if parameter.ndim >= 2:
                parameter.mul_(4)


def text_settings(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Settings of a language model of two layers of width 64, ready for a text config."""
    settings: Mapping[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "initializer_range": 0.15,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    return {**settings, **more}
