"""Image features for shortened prompts, from the policy's Hugging Face vision encoder and projector.

The vision encoder inside vLLM differs from it by 1e-3, so features of both in one comparison would look like an effect.
An image is encoded once under the same weights, in a batch with others that are needed at the same time (`prepare`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from cachetools import LRUCache
from transformers import AutoModel

from common.chat import ChatEncoder
from common.chat.families import against_shortened
from common.chat.template import PROBE
from common.checkpoint.files import tensors
from common.checkpoint.layout import layout_of
from common.errors import Refused, UserError
from common.model_parts import is_vision_side
from common.protocols import GenerationRequest, Tensors
from common.records import ImageRef, Prompt
from common.weights import from_array

CAPACITY = 256
"""Images whose features are kept."""
BATCH = 16
"""Images per forward of the vision encoder."""

Inputs: TypeAlias = dict[str, torch.Tensor]
"""Keyword arguments of `get_image_features` for one image."""


class VisionFeatures:
    """Features by image content under the current weights. The model is read from disk at the first use."""

    def __init__(
        self,
        encoder: ChatEncoder,
        dtype: torch.dtype,
    ) -> None:
        self._encoder = encoder
        self._dtype = dtype
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        self._model: Any = None
        # Weights that were pushed before the model was built.
        self._pushed: dict[str, torch.Tensor] = {}
        self._cache: LRUCache[str, torch.Tensor] = LRUCache(CAPACITY)

    def prepare(self, prompts: Iterable[Prompt]) -> None:
        """Encode the images of these prompts in batches; for one that cannot be read, `visible` says why.

        At most `CAPACITY` images are kept, so prepare few more than are needed next.
        """
        wanted: dict[str, Inputs] = {}
        for prompt in prompts:
            for image in prompt.images:
                key = image.sha256
                if key in self._cache or key in wanted:
                    continue
                with suppress(Refused):
                    wanted[key] = self._inputs(image)
        self._encode(wanted)

    def visible(
        self,
        prompt: Prompt,
        indices: Sequence[int],
    ) -> list[torch.Tensor]:
        """Rows `indices` of the features of the prompt's images, counted over all of them.

        Returns:
            Shape (visible tokens, hidden) per image, on the CPU; without a row where an image is hidden.

        Raises:
            Refused: `image_count` without an image; `image_tokens` unless the indices rise and exist.
        """
        if not prompt.images:
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: expected an image to be shortened, got none",
            )
        per_image = [self._features_of(image) for image in prompt.images]
        num_tokens = sum(map(len, per_image))
        rows = list(indices)
        if not _are_rising_indices(rows, num_tokens):
            raise Refused(
                "image_tokens",
                f"prompt {prompt.id}: expected rising indices of {num_tokens} image tokens, got {rows[:8]}",
            )
        visible = []
        start = 0
        for features in per_image:
            stop = start + len(features)
            of_image = [row - start for row in rows if start <= row < stop]
            visible.append(features[of_image].contiguous())
            start = stop
        return visible

    def _features_of(self, image: ImageRef) -> torch.Tensor:
        """All features of an image, (tokens, hidden) (Refused when it cannot be encoded)."""
        key = image.sha256
        if key not in self._cache:
            self._encode({key: self._inputs(image)})
        return self._cache[key]

    def load(self, tensors: Tensors) -> None:
        """Take the vision side of pushed weights and forget the features of the old ones."""
        for name, array in tensors.items():
            if is_vision_side(name):
                key, value = from_array(name, array)
                # The array may be mapped memory that is gone after the push.
                self._pushed[key] = value.clone()
        self._cache.clear()
        if self._model is not None:
            self._assign(self._pushed)
            self._pushed.clear()

    def _inputs(self, image: ImageRef) -> Inputs:
        # Alone: what a prompt's other images are makes no difference to it, but for padding.
        alone = Prompt(image.path, (PROBE,), (image,))
        encoded = self._encoder.encode_prompt(alone)
        return vision_inputs(encoded.model_inputs)

    @torch.inference_mode()
    def _encode(
        self,
        wanted: Mapping[str, Inputs],
    ) -> None:
        """Fill the cache, at most `BATCH` images of like-shaped inputs in one forward."""
        if wanted and self._model is None:
            self._build()
        alike: dict[Any, list[str]] = {}  # input shapes -> images
        for key, inputs in wanted.items():
            # Images are concatenated along the first axis; the others have to agree.
            shapes = []
            for name in sorted(inputs):
                row_shape = inputs[name].shape[1:]
                shapes.append((name, row_shape))
            alike.setdefault(tuple(shapes), []).append(key)
        for keys in alike.values():
            for start in range(0, len(keys), BATCH):
                batch = {}
                for key in keys[start : start + BATCH]:
                    batch[key] = wanted[key]
                self._encode_batch(batch)

    def _encode_batch(
        self,
        batch: Mapping[str, Inputs],
    ) -> None:
        inputs = {}
        images = list(batch.values())
        for name in images[0]:
            value = torch.cat([image[name] for image in images])
            # Sizes and grids are integers and stay so.
            dtype = self._dtype if value.is_floating_point() else None
            inputs[name] = value.to(self._device, dtype)
        features = self._model.get_image_features(**inputs).pooler_output
        for key, rows in zip(batch, features, strict=True):
            # A view of the batch would keep the whole batch in memory.
            self._cache[key] = rows.to("cpu", copy=True)

    def _build(self) -> None:
        """Build the policy without its language model: no decoder layers and a vocabulary of one."""
        model_path = self._encoder.model_path
        config = type(self._encoder.config).from_pretrained(model_path)
        reason = against_shortened(config)
        if reason is not None:
            raise UserError(
                f"visible_image_tokens: expected a family whose image tokens can be left out, got {reason}; keep whole "
                "images"
            )
        without_layers: dict[str, Any] = {
            "num_hidden_layers": 0,
            "vocab_size": 1,
            "pad_token_id": None,
            "layer_types": [],
        }
        config.text_config.update(without_layers)
        _leave_out_unread_layers(config)
        model = AutoModel.from_config(config)
        self._model = model.to(self._device, self._dtype)
        # No dropout.
        self._model.eval()
        self._assign(_read_vision(model_path) | self._pushed)
        self._pushed.clear()

    @torch.inference_mode()
    def _assign(
        self,
        weights: dict[str, torch.Tensor],
    ) -> None:
        parameters = dict(self._model.named_parameters())
        for tensor, name in layout_of(self._encoder.model_path).parameters.items():
            # AutoModel builds what is `model.` in the policy with its head.
            name = name.removeprefix("model.")
            if tensor in weights and name in parameters:
                parameters[name].copy_(weights[tensor])


def by_images(
    requests: Sequence[GenerationRequest], num_images: int = BATCH
) -> Iterator[list[GenerationRequest]]:
    """Cut requests, in order, into runs of at most `num_images` images that have to be encoded.

    Only requests with some visible image tokens need features; whole images are encoded by vLLM.
    """
    batch: list[GenerationRequest] = []
    in_batch: set[str] = set()
    for request in requests:
        images: set[str] = set()
        if request.visible_image_tokens:
            images.update(image.sha256 for image in request.prompt.images)
        # A request that brings no new image never starts a batch.
        is_new = not images <= in_batch
        is_full = len(in_batch | images) > num_images
        if batch and is_new and is_full:
            yield batch
            batch = []
            in_batch = set()
        batch.append(request)
        in_batch |= images
    if batch:
        yield batch


def _are_rising_indices(
    indices: list[int],
    length: int,
) -> bool:
    if not indices:
        return False
    if indices[0] < 0 or indices[-1] >= length:
        return False
    return indices == sorted(set(indices))


def vision_inputs(model_inputs: Mapping[str, Any]) -> Inputs:
    """The part of a processor's output that `get_image_features` takes: pixels, sizes, grids, but no token types."""
    prefixes = ("pixel_values", "image_")
    names = [name for name in model_inputs if name.startswith(prefixes)]
    return {name: model_inputs[name] for name in names}


def _leave_out_unread_layers(config: Any) -> None:
    """Drop the CLIP layers behind the one whose output is read; LLaVA reads the last but one."""
    layer = getattr(config, "vision_feature_layer", None)
    if not isinstance(layer, int) or layer >= -1:
        return
    if config.vision_config.model_type == "clip_vision_model":
        config.vision_config.num_hidden_layers += layer + 1
        config.vision_feature_layer = -1


def _read_vision(model_path: Path) -> dict[str, torch.Tensor]:
    layout = layout_of(model_path)
    vision = {}
    for name, tensor in tensors(model_path, is_vision_side):
        readable_name, readable_tensor = layout.readable(name, tensor)
        vision[readable_name] = readable_tensor
    return vision
