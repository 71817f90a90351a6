"""From a generation request to what vLLM takes; what comes back is in `results.py`.

    text + images -> unexpanded ids, pixels -> (vLLM expands) -> checked against the processor -> sampling -> group

Prompts go in unexpanded, so that image tokens are expanded once, by the engine. The group has the engine's sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL import Image

from actors.bdhs.vision_features import VisionFeatures
from actors.vllm_api import RequestOutputKind, SamplingParams
from common.chat import ChatEncoder, EncodedPrompt, has_grid_positions
from common.data.diffusion_noise import noise_image
from common.errors import Refused
from common.protocols import GenerationRequest, ImageNoise
from common.records import Prompt

BAN = -100.0
"""Logit bias that keeps a token from being sampled; vLLM's lowest."""
_MAX_SIZES = 4096

Size: TypeAlias = tuple[int, int]
Sizes: TypeAlias = tuple[Size, ...]
"""Width and height in pixels of each image of a prompt."""


@dataclass(frozen=True, slots=True)
class EnginePrompt:
    """A prompt in the form of vLLM.

    Attributes:
        payload: vLLM's prompt dict.
        sizes: of whole images; None for a shortened sequence.
        suffix: tokens of the answer that the sequence ends with.
        expected: the processor's prompt, for image sizes that no earlier prompt had.
    """

    prompt: Prompt
    payload: dict[str, Any]
    sizes: Sizes | None
    suffix: tuple[int, ...]
    expected: EncodedPrompt | None = None


class PromptBuilder:
    """Builds engine prompts and checks how the engine expands them."""

    def __init__(
        self,
        encoder: ChatEncoder,
        features: VisionFeatures,
    ) -> None:
        self._encoder = encoder
        self._features = features
        self._image_side = _image_side(encoder.config)
        # Image tokens, and tokens that the placeholders grow by, marks between image tokens included.
        self._expansions: dict[Sizes, tuple[int, int]] = {}

    def build(
        self,
        prompt: Prompt,
        suffix: Sequence[int],
        visible: Sequence[int] | None = None,
        noise: ImageNoise | None = None,
    ) -> EnginePrompt:
        """Build a prompt that is followed by tokens of its answer.

        Args:
            prompt: text and images.
            suffix: token ids of the answer so far.
            visible: indices of the image tokens to keep, counted over all images; None keeps whole images.
            noise: laid on the pixels of all images.

        Raises:
            Refused: it cannot be run; `reason` says why.
        """
        self._check_media(prompt, suffix)
        encoder = self._encoder
        prompt_ids = encoder.prompt_ids(prompt)
        # Shortened prompts bring features instead of pixels.
        if visible is not None:
            return self._shortened(
                prompt,
                prompt_ids,
                tuple(suffix),
                visible,
            )

        token_ids = [*prompt_ids, *suffix]
        encoder.check_length(prompt, len(token_ids))
        payload: dict[str, Any] = {"prompt_token_ids": token_ids}
        images: list[Image.Image] = encoder.load_images(prompt)
        # vLLM caches image features under these names, so a name must stand for exactly one array of pixels.
        names = [image.sha256 for image in prompt.images]
        if noise is not None:
            for i, image in enumerate(images):
                seed = noise.seed + i
                images[i] = noise_image(
                    image,
                    noise.step,
                    seed,
                    self._image_side,
                )
                names[i] += f"/noise-{noise.step}-{seed}"
        if images:
            payload["multi_modal_data"] = {"image": images}
            payload["multi_modal_uuids"] = {"image": names}
        sizes = tuple(image.size for image in images)
        # Before vLLM sees the prompt: a row that the processor refuses would stop its engine.
        expected = None
        if sizes and sizes not in self._expansions:
            expected = encoder.encode_prompt(prompt)
        return EnginePrompt(prompt, payload, sizes, tuple(suffix), expected)

    def _check_media(
        self,
        prompt: Prompt,
        suffix: Sequence[int],
    ) -> None:
        media_tokens = set(suffix).intersection(self._encoder.media_token_ids)
        if media_tokens:
            raise Refused(
                "response_media",
                f"prompt {prompt.id}: expected an answer of text, got media tokens {sorted(media_tokens)}; "
                "take them out",
            )

    def _shortened(
        self,
        prompt: Prompt,
        prompt_ids: list[int],
        suffix: tuple[int, ...],
        visible: Sequence[int],
    ) -> EnginePrompt:
        """Build the sequence without the hidden image tokens; the text around the images stays as it is.

        A limit: where a push changes encoder or projector, an answer that is being sampled meanwhile goes on under the
        new weights with the features of the old ones, although its tokens are labelled with the new version.
        """
        per_image = [torch.empty(0)] * len(prompt.images)
        # Features are made only where some are seen.
        if visible:
            per_image = self._features.visible(prompt, visible)
        seen = [rows for rows in per_image if len(rows)]
        # A placeholder is replaced by those of its image that are visible, or left out where none is.
        kept_ids: list[int] = []
        images = iter(per_image)
        for token in prompt_ids:
            is_image = token == self._encoder.placeholder_id
            if not is_image or len(next(images)):
                kept_ids.append(token)
        num_prompt_tokens = len(kept_ids) - len(seen) + len(visible)
        self._encoder.check_length(prompt, num_prompt_tokens + len(suffix))
        payload: dict[str, Any] = {"prompt_token_ids": [*kept_ids, *suffix]}
        if seen:
            payload["multi_modal_data"] = {"image": self._embeddings(seen)}
        return EnginePrompt(prompt, payload, None, suffix)

    def _embeddings(self, per_image: list[torch.Tensor]) -> Any:
        """Features of shape (tokens, hidden) of every image that is seen, in the form that vLLM takes.

        A model with three-dimensional positions counts them from grids: the visible tokens are an image of one row,
        as in benchmarks/masked_forward.py, the reference.
        """
        config = self._encoder.config
        if not has_grid_positions(config):
            return per_image
        # The grid counts patches before the projector merges `merge` x `merge` of them into a token.
        merge = config.vision_config.spatial_merge_size
        grids = [[1, merge, merge * len(rows)] for rows in per_image]
        return {
            "image_embeds": torch.cat(per_image),
            "image_grid_thw": torch.tensor(grids),
        }

    def check(
        self,
        built: EnginePrompt,
        token_ids: Sequence[int],
    ) -> None:
        """Check that the engine's expanded sequence is the processor's.

        It is compared in full once per tuple of image sizes, afterwards by its number of tokens.

        Raises:
            Refused: too long.
            RuntimeError: engine and processor disagree, so training would see other inputs than sampling.
        """
        encoder = self._encoder
        prompt = built.prompt
        num_image_tokens = token_ids.count(encoder.image_token_id)
        encoder.check_length(prompt, len(token_ids), num_image_tokens)
        # Text alone and shortened sequences are not expanded by the engine.
        if not built.sizes:
            return
        growth = len(token_ids) - len(built.payload["prompt_token_ids"])
        if self._expansions.get(built.sizes) == (num_image_tokens, growth):
            return
        # Since this prompt was built, the sizes may have been forgotten; or this text joins with an image's marks.
        encoded = built.expected or encoder.encode_prompt(prompt)
        processors_ids = (*encoded.token_ids, *built.suffix)
        if processors_ids != tuple(token_ids):
            raise _disagreement(prompt, encoded.num_image_tokens, num_image_tokens)
        # Pictures of a data set may be of any number of sizes.
        if len(self._expansions) >= _MAX_SIZES:
            self._expansions.clear()
        self._expansions[built.sizes] = (num_image_tokens, growth)


def _image_side(config: Any) -> int | None:
    """The side in pixels that the vision encoder works at; None for families that take images of any size."""
    side = getattr(config.vision_config, "image_size", None)
    # InternVL has height and width, which are equal.
    if isinstance(side, list | tuple):
        side = max(side)
    return None if side is None else int(side)


def _disagreement(
    prompt: Prompt,
    expected: int,
    got: int,
) -> RuntimeError:
    return RuntimeError(
        f"prompt {prompt.id}: expected the processor's sequence with {expected} image tokens, got another one with "
        f"{got} from vLLM; transformers and vLLM do not fit together (see requirements/)"
    )


def sampling_params(
    request: GenerationRequest,
    room: int,
    media_token_ids: Sequence[int],
    stop_token_ids: Sequence[int] = (),
) -> SamplingParams:
    """Sampling parameters of a request, media tokens banned. Greedy answers are sampled once only.

    Args:
        request: what to sample.
        room: tokens that are left of the model's length.
        media_token_ids: tokens that no answer may hold.
        stop_token_ids: ends of an answer beside those that vLLM knows of: the tokenizer's, and generation_config's.
    """
    is_greedy = request.temperature == 0
    # Only stop strings need text while sampling; other answers are decoded by us.
    has_stop = bool(request.stop)
    return SamplingParams(
        n=1 if is_greedy else request.num_completions,
        temperature=request.temperature,
        top_p=1.0 if is_greedy else request.top_p,
        max_tokens=min(request.max_tokens, room),
        seed=request.seed,
        stop=list(request.stop),
        stop_token_ids=list(stop_token_ids),
        include_stop_str_in_output=has_stop,
        logit_bias=dict.fromkeys(media_token_ids, BAN),
        # 0: of the sampled tokens alone. They are those of the logits, before temperature, top_p and bans.
        logprobs=0 if request.logprobs else None,
        detokenize=has_stop,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_params(last_token: int, likeliest: int = 0) -> SamplingParams:
    """Parameters that return the log-probs of the prompt's tokens, and of one more that follows it.

    With `likeliest`, also of so many of the likeliest tokens at every place.

    vLLM samples at least one token. It is the answer's last, the only one allowed: so a sequence as long as the model
    fits, which has no position left behind it. Its log-prob is that of all tokens, before others are masked.
    """
    return SamplingParams(
        temperature=0,
        max_tokens=1,
        prompt_logprobs=likeliest,
        logprobs=likeliest,
        # Else an object per token of the prompt and likely token, of which few are read.
        flat_logprobs=likeliest > 0,
        allowed_token_ids=[last_token],
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
