"""The reference that engines are held against: the same policy in plain transformers, float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from common.chat import ChatEncoder
from common.records import LogprobProbe, Prompt, WeightManifest
from common.weights import checksum, to_arrays


class HfPolicy:
    """A policy that answers by whole forward passes, without caches that could go stale."""

    def __init__(self, path: Path, max_length: int = 512) -> None:
        self.encoder = ChatEncoder(path, max_length)
        self.model = LlavaForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32
        ).eval()

    def perturb(self, seed: int, scale: float = 0.3) -> HfPolicy:
        """Move every parameter by `scale` of its own spread, vision side included."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(
                    noise
                    * (scale * (parameter.std() if parameter.numel() > 1 else 1.0))
                )
        return self

    @torch.no_grad()
    def _logits(
        self,
        prompt: Prompt,
        suffix: Sequence[int],
        visible: Sequence[int] | None = None,
    ) -> torch.Tensor:
        encoded = self.encoder.encode_prompt(prompt)
        ids = torch.tensor([[*encoded.token_ids, *suffix]])
        is_image = ids[0] == self.encoder.image_token_id
        features = torch.cat(
            list(self.model.get_image_features(**encoded.model_inputs).pooler_output)
        )
        embeddings = self.model.get_input_embeddings()(ids)
        embeddings[0, is_image] = features
        if visible is not None:
            keep = ~is_image
            keep[is_image.nonzero()[list(visible), 0]] = True
            embeddings = embeddings[:, keep]
        logits: torch.Tensor = self.model(inputs_embeds=embeddings).logits[0]
        return logits

    def token_logprobs(
        self, prompt: Prompt, token_ids: Sequence[int]
    ) -> tuple[float, ...]:
        logprobs = self._logits(prompt, token_ids)[
            -len(token_ids) - 1 : -1
        ].log_softmax(-1)
        return tuple(logprobs[range(len(token_ids)), list(token_ids)].tolist())

    def predicted(self, prompt: Prompt, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The greedy token at each place of a given answer, media tokens banned."""
        logits = self._logits(prompt, token_ids)[-len(token_ids) - 1 : -1]
        logits[:, list(self.encoder.media_token_ids)] = -torch.inf
        return tuple(logits.argmax(-1).tolist())

    def greedy(
        self,
        prompt: Prompt,
        num_tokens: int,
        prefix: str = "",
        visible: Sequence[int] | None = None,
    ) -> tuple[int, ...]:
        """Greedy answer with media tokens banned; ends after the end-of-sequence token."""
        encoder = self.encoder
        start = encoder.encode_response(prefix)[:-1] if prefix else ()
        answer: list[int] = []
        while len(answer) < num_tokens and encoder.eos_token_id not in answer:
            logits = self._logits(prompt, [*start, *answer], visible)[-1]
            logits[list(encoder.media_token_ids)] = -torch.inf
            answer.append(int(logits.argmax()))
        return tuple(answer)

    def publish(
        self, version: int, prompt: Prompt | None = None, probe_shift: float = 0.0
    ) -> tuple[WeightManifest, dict[str, np.ndarray[Any, Any]]]:
        """A manifest as the learner would write it, with a probe on `prompt`, and the arrays."""
        arrays = to_arrays(self.model.state_dict())
        probe = None
        if prompt is not None:
            token_ids = (300, 301, 302, self.encoder.eos_token_id)
            found = tuple(
                value + probe_shift for value in self.token_logprobs(prompt, token_ids)
            )
            probe = LogprobProbe(prompt, token_ids, found)
        num_bytes = sum(array.nbytes for array in arrays.values())
        return WeightManifest(
            version, checksum(arrays), len(arrays), num_bytes, 1.0, probe
        ), arrays
