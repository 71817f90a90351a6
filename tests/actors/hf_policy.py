"""The reference that engines are compared with: the same policy in plain transformers, float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from common.chat import ChatEncoder
from common.checkpoint.layout import layout_of
from common.records import Prompt, WeightManifest
from common.weights import checksum, to_arrays
from tests.probes import probe_of

Publication: TypeAlias = tuple[WeightManifest, dict[str, "np.ndarray[Any, Any]"]]


class HfPolicy:
    """A policy that answers by whole forward passes, without caches that could go stale."""

    def __init__(
        self,
        path: Path,
        max_length: int = 512,
    ) -> None:
        self.encoder = ChatEncoder(path, max_length)
        model = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        self.model = model.eval()

    def perturb(
        self,
        seed: int,
        scale: float = 0.3,
    ) -> HfPolicy:
        """Move every parameter by `scale` of its standard deviation, vision side included."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                # A single value has no standard deviation.
                spread = parameter.std() if parameter.numel() > 1 else 1.0
                parameter.add_(noise * (scale * spread))
        return self

    @torch.no_grad()
    def logits(
        self,
        prompt: Prompt,
        suffix: Sequence[int],
        visible: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """(length, vocabulary) logits of a prompt and tokens of its answer; None shows the whole image."""
        encoded = self.encoder.encode_prompt(prompt)
        sequence = [*encoded.token_ids, *suffix]
        ids = torch.tensor([sequence])
        is_image = ids[0] == self.encoder.image_token_id
        output = self.model.get_image_features(**encoded.model_inputs)
        embeddings = self.model.get_input_embeddings()(ids)
        # One tensor of features per image.
        features = torch.cat(list(output.pooler_output))
        embeddings[0, is_image] = features
        if visible is not None:
            image_places = is_image.nonzero()[:, 0]
            visible_places = image_places[list(visible)]
            is_kept = ~is_image
            is_kept[visible_places] = True
            # Positions count what is left, as in the engine.
            embeddings = embeddings[:, is_kept]
        logits: torch.Tensor = self.model(inputs_embeds=embeddings).logits[0]
        return logits

    def token_logprobs(
        self,
        prompt: Prompt,
        token_ids: Sequence[int],
    ) -> tuple[float, ...]:
        logits = self.logits(prompt, token_ids)
        predicting = logits[-len(token_ids) - 1 : -1]
        logprobs = predicting.log_softmax(-1)
        places = range(len(token_ids))
        return tuple(logprobs[places, list(token_ids)].tolist())

    def predicted(
        self,
        prompt: Prompt,
        token_ids: Sequence[int],
    ) -> tuple[int, ...]:
        """The greedy token at each place of a given answer, media tokens banned."""
        logits = self.logits(prompt, token_ids)
        # The logits of a place predict the token after it.
        predicting = logits[-len(token_ids) - 1 : -1]
        banned = list(self.encoder.media_token_ids)
        predicting[:, banned] = -torch.inf
        predicted = predicting.argmax(-1)
        return tuple(predicted.tolist())

    def greedy(
        self,
        prompt: Prompt,
        num_tokens: int,
        prefix: str = "",
        visible: Sequence[int] | None = None,
    ) -> tuple[int, ...]:
        """Greedy answer with media tokens banned; ends after the end-of-sequence token."""
        encoder = self.encoder
        banned = list(encoder.media_token_ids)
        # Without the end-of-sequence token: the answer goes on after its prefix.
        start = encoder.encode_response(prefix)[:-1] if prefix else ()
        answer: list[int] = []
        while len(answer) < num_tokens and encoder.eos_token_id not in answer:
            sequence = [*start, *answer]
            logits = self.logits(prompt, sequence, visible)
            predicting = logits[-1]
            predicting[banned] = -torch.inf
            token = predicting.argmax()
            answer.append(int(token))
        return tuple(answer)

    def publish(
        self,
        version: int,
        prompt: Prompt | None = None,
        probe_shift: float = 0.0,
    ) -> Publication:
        """A manifest as the learner would write it, and the arrays.

        Args:
            version: of the weights.
            prompt: of the probe; None publishes without a probe.
            probe_shift: nats that are added to the probe's log-probs, to make it wrong.
        """
        layout = layout_of(self.encoder.model_path)
        arrays = to_arrays(layout.pushed(self.model.state_dict()))
        probe = None
        if prompt is not None:
            token_ids = (300, 301, 302, self.encoder.eos_token_id)
            logprobs = self.token_logprobs(prompt, token_ids)
            shifted = tuple(logprob + probe_shift for logprob in logprobs)
            probe = probe_of(prompt, token_ids, shifted)
        num_bytes = sum(array.nbytes for array in arrays.values())
        manifest = WeightManifest(
            version,
            checksum(arrays),
            len(arrays),
            num_bytes,
            change_norm=1.0,
            probe=probe,
        )
        return manifest, arrays
