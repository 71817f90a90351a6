"""From a generation request to what vLLM takes, and back.

    text + images -> unexpanded ids, pixels -> (vLLM expands) -> checked against the processor -> sampling -> group

Prompts go in unexpanded, so that image tokens are expanded once, by the engine; its sequence is taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from actors.vision_features import VisionFeatures
from actors.vllm_api import (
    CompletionOutput,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
)
from common.chat import ChatEncoder, has_grid_positions
from common.distortion import noise_image
from common.errors import Refused
from common.protocols import GenerationRequest, ImageNoise
from common.records import Completion, Dropped, Prompt, RolloutGroup

MAX_IMAGES = 8
BAN = -100.0
_MAX_SIZES = 4096
_START_LABEL = "default"  # vLLM's version label before the first push


@dataclass(frozen=True, slots=True)
class EnginePrompt:
    """`payload` is vLLM's prompt dict. `sizes` are those of whole images; None for a shortened sequence."""

    prompt: Prompt
    payload: dict[str, Any]
    sizes: tuple[tuple[int, int], ...] | None
    suffix: tuple[int, ...]


class PromptBuilder:
    """Builds engine prompts and checks what the engine makes of them."""

    def __init__(self, encoder: ChatEncoder, features: VisionFeatures) -> None:
        self._encoder = encoder
        self._features = features
        self._image_side: int | None = getattr(
            encoder.config.vision_config, "image_size", None
        )
        self._num_image_tokens: dict[tuple[tuple[int, int], ...], int] = {}

    def build(
        self,
        prompt: Prompt,
        suffix: Sequence[int],
        visible: Sequence[int] | None = None,
        noise: ImageNoise | None = None,
    ) -> EnginePrompt:
        """A prompt followed by tokens of its answer; `visible` image tokens only, or noised images, when given.

        Raises:
            Refused: it cannot be run; `reason` says why.
        """
        encoder = self._encoder
        if len(prompt.images) > MAX_IMAGES:
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: expected at most {MAX_IMAGES} images, got {len(prompt.images)}",
            )
        if media := set(suffix) & set(encoder.media_token_ids):
            raise Refused(
                "response_media",
                f"prompt {prompt.id}: expected an answer of text, got media tokens {sorted(media)}; take them out",
            )
        ids = [
            int(token)
            for token in encoder.tokenizer(encoder.prompt_text(prompt))["input_ids"]
        ]
        if visible is not None:
            return self._shortened(prompt, ids, tuple(suffix), visible)
        payload: dict[str, Any] = {"prompt_token_ids": [*ids, *suffix]}
        encoder.check_length(prompt, len(payload["prompt_token_ids"]))
        pixels: list[Image.Image] = encoder.load_images(prompt)
        names = [image.sha256 for image in prompt.images]
        if noise is not None:
            pixels = [
                noise_image(one, noise.step, noise.seed + i, self._image_side)
                for i, one in enumerate(pixels)
            ]
            names = [
                f"{name}/noise-{noise.step}-{noise.seed + i}"
                for i, name in enumerate(names)
            ]
        if pixels:
            payload["multi_modal_data"] = {"image": pixels}
            payload["multi_modal_uuids"] = {
                "image": names
            }  # the key of vLLM's caches: all that decides the pixels
        return EnginePrompt(
            prompt, payload, tuple(image.size for image in pixels), tuple(suffix)
        )

    def _shortened(
        self,
        prompt: Prompt,
        ids: list[int],
        suffix: tuple[int, ...],
        visible: Sequence[int],
    ) -> EnginePrompt:
        """The sequence without the hidden image tokens; the text around the image stays as it is."""
        self._encoder.check_length(prompt, len(ids) - 1 + len(visible) + len(suffix))
        if visible:
            image = self._embeddings(self._features.visible(prompt, visible))
            payload: dict[str, Any] = {"multi_modal_data": {"image": image}}
        else:
            payload, ids = (
                {},
                [token for token in ids if token != self._encoder.image_token_id],
            )
        payload["prompt_token_ids"] = [*ids, *suffix]
        return EnginePrompt(prompt, payload, None, suffix)

    def _embeddings(self, rows: torch.Tensor) -> Any:
        """Image features (tokens, hidden) as vLLM takes them.

        A model with three-dimensional positions counts them from a grid: the visible tokens are an image of one row,
        whose width counts them, as actors/masked_forward.py has it.
        """
        config = self._encoder.config
        if not has_grid_positions(config):
            return [rows]  # a list: vLLM would read a bare tensor as one image per row
        merge = config.vision_config.spatial_merge_size
        return {
            "image_embeds": rows,
            "image_grid_thw": torch.tensor([[1, merge, merge * len(rows)]]),
        }

    def check(self, built: EnginePrompt, token_ids: Sequence[int]) -> None:
        """The engine's sequence must be the processor's: in full once per image size, then by its number of tokens.

        Raises:
            Refused: too long. RuntimeError: engine and processor disagree, which would train on other inputs.
        """
        encoder, prompt = self._encoder, built.prompt
        encoder.check_length(prompt, len(token_ids))
        if not built.sizes:
            return
        found = token_ids.count(encoder.image_token_id)
        expected = self._num_image_tokens.get(built.sizes)
        if expected is None:
            encoded = encoder.encode_prompt(prompt)
            if (*encoded.token_ids, *built.suffix) != tuple(token_ids):
                raise RuntimeError(
                    _disagreement(prompt, encoded.num_image_tokens, found)
                )
            if len(self._num_image_tokens) >= _MAX_SIZES:
                self._num_image_tokens.clear()
            self._num_image_tokens[built.sizes] = encoded.num_image_tokens
        elif found != expected or len(token_ids) != len(
            built.payload["prompt_token_ids"]
        ) + found - len(built.sizes):
            raise RuntimeError(_disagreement(prompt, expected, found))


def _disagreement(prompt: Prompt, expected: int, found: int) -> str:
    return (
        f"prompt {prompt.id}: expected the processor's sequence with {expected} image tokens, got another one with "
        f"{found} from vLLM; transformers and vLLM do not fit together (see requirements/)"
    )


def sampling_params(
    request: GenerationRequest, room: int, media_token_ids: Sequence[int]
) -> SamplingParams:
    """What to sample, with media tokens banned and at most `room` tokens. Greedy answers are sampled once only."""
    greedy = request.temperature == 0
    return SamplingParams(
        n=1 if greedy else request.num_completions,
        temperature=request.temperature,
        top_p=1.0 if greedy else request.top_p,
        max_tokens=min(request.max_tokens, room),
        seed=request.seed,
        stop=list(request.stop),
        include_stop_str_in_output=bool(request.stop),
        logit_bias=dict.fromkeys(media_token_ids, BAN),
        detokenize=bool(request.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_params() -> SamplingParams:
    """Log-probs of the prompt's own tokens."""
    return SamplingParams(
        temperature=0,
        max_tokens=1,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def to_group(
    request: GenerationRequest, output: RequestOutput, encoder: ChatEncoder
) -> RolloutGroup | Dropped:
    """The finished group; one with a media token in an answer is dropped (`media_token`)."""
    completions = [
        _completion(one, encoder, bool(request.stop)) for one in output.outputs
    ]
    if any(set(one.token_ids) & set(encoder.media_token_ids) for one in completions):
        return Dropped(
            request.id,
            "media_token",
            "an answer holds an image token although they are banned",
        )
    if len(completions) < request.num_completions:  # greedy: all alike
        completions *= request.num_completions
    prompt_ids = tuple(output.prompt_token_ids or ())
    num_image_tokens = prompt_ids.count(encoder.image_token_id)
    return RolloutGroup(
        request.id, request.prompt, prompt_ids, num_image_tokens, tuple(completions)
    )


def _completion(
    output: CompletionOutput, encoder: ChatEncoder, has_text: bool
) -> Completion:
    token_ids = tuple(output.token_ids)
    spans = output.weight_versions
    assert spans, "vLLM reports the weight version of every finished sequence"
    return Completion(
        token_ids=token_ids,
        text=output.text if has_text else encoder.decode(token_ids),
        min_weight_version=_version(spans[0].version),
        max_weight_version=_version(spans[-1].version),
        finish_reason="stop" if output.finish_reason == "stop" else "length",
    )


def _version(label: str) -> int:
    return 0 if label == _START_LABEL else int(label)


def token_logprobs(
    output: RequestOutput, token_ids: Sequence[int]
) -> tuple[float, ...]:
    """Log-probs of the last tokens of a scored sequence, in nats."""
    rows: Any = output.prompt_logprobs
    rows = rows[len(rows) - len(token_ids) :]
    return tuple(
        float(row[token].logprob) for row, token in zip(rows, token_ids, strict=True)
    )
