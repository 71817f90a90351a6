"""Image features for shortened prompts, from one place only: the Hugging Face tower and projector of the policy.

The tower inside vLLM differs from it by 1e-3; features of two sources in one comparison would look like an effect.
An image is encoded once under the same weights, together with others that are asked for at the same time (`prepare`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from cachetools import LRUCache
from safetensors import safe_open
from transformers import AutoModel

from common.chat import ChatEncoder
from common.errors import Refused, UserError
from common.model_parts import is_vision_side
from common.protocols import GenerationRequest, Tensors
from common.records import Prompt
from common.weights import from_array, hub_name

FAMILIES = ("llava", "llava_next", "qwen2_5_vl")
CAPACITY = 256
BATCH = 16
"""Images per forward of the tower."""

Inputs: TypeAlias = dict[str, torch.Tensor]


class VisionFeatures:
    """Features by image content under the current weights. The model is read from disk at the first use."""

    def __init__(self, encoder: ChatEncoder, dtype: torch.dtype) -> None:
        self._encoder = encoder
        self._dtype = dtype
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = None
        self._pushed: dict[str, torch.Tensor] = {}
        self._cache: LRUCache[str, torch.Tensor] = LRUCache(CAPACITY)

    def prepare(self, prompts: Iterable[Prompt]) -> None:
        """Encode the images of these prompts together, those that cannot be had aside: `visible` says why.

        At most `CAPACITY` images are kept, so prepare few more than are asked for next.
        """
        wanted: dict[str, Inputs] = {}
        for prompt in prompts:
            for image in prompt.images[:1]:
                if image.sha256 not in self._cache and image.sha256 not in wanted:
                    with suppress(Refused):
                        wanted[image.sha256] = self._inputs(prompt)
        self._encode(wanted)

    def visible(self, prompt: Prompt, indices: Sequence[int]) -> torch.Tensor:
        """Rows `indices` of the prompt's only image, shape (len(indices), hidden), on the CPU.

        Raises:
            Refused: `image_count` unless there is one image, `image_tokens` when the indices are none of its.
        """
        if len(prompt.images) != 1:
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: expected one image to be shortened, got {len(prompt.images)}",
            )
        key = prompt.images[0].sha256
        if key not in self._cache:
            self._encode({key: self._inputs(prompt)})
        rows = self._cache[key]
        if (
            list(indices) != sorted(set(indices))
            or not indices
            or indices[0] < 0
            or indices[-1] >= len(rows)
        ):
            raise Refused(
                "image_tokens",
                f"prompt {prompt.id}: expected rising indices of {len(rows)} image tokens, got {list(indices)[:8]}",
            )
        return rows[list(indices)].contiguous()

    def load(self, tensors: Tensors) -> None:
        """Take over the vision side of pushed weights and forget features of the old ones."""
        for name, array in tensors.items():
            if is_vision_side(name):
                key, value = from_array(name, array)
                self._pushed[key] = (
                    value.clone()
                )  # the arrays may be mapped memory that goes away after the push
        self._cache.clear()
        if self._model is not None:
            self._assign(self._pushed)
            self._pushed.clear()

    def _inputs(self, prompt: Prompt) -> Inputs:
        return vision_inputs(self._encoder.encode_prompt(prompt).model_inputs)

    @torch.inference_mode()
    def _encode(self, wanted: Mapping[str, Inputs]) -> None:
        """Into the cache, `BATCH` images at a time of those whose tensors can be laid one after another."""
        if wanted and self._model is None:
            self._build()
        alike: defaultdict[Any, list[str]] = defaultdict(list)
        for key, inputs in wanted.items():
            alike[
                tuple((name, value.shape[1:]) for name, value in sorted(inputs.items()))
            ].append(key)
        for keys in alike.values():
            for at in range(0, len(keys), BATCH):
                self._encode_batch({key: wanted[key] for key in keys[at : at + BATCH]})

    def _encode_batch(self, batch: Mapping[str, Inputs]) -> None:
        inputs = {}
        for name in next(iter(batch.values())):
            value = torch.cat([one[name] for one in batch.values()])
            inputs[name] = value.to(
                self._device, self._dtype if value.is_floating_point() else None
            )
        found = self._model.get_image_features(**inputs).pooler_output
        for key, rows in zip(batch, found, strict=True):
            self._cache[key] = rows.to(
                "cpu", copy=True
            )  # a row must not keep its whole batch in memory

    def _build(self) -> None:
        """The policy without its language model: no layers, a vocabulary of one."""
        config = type(self._encoder.config).from_pretrained(self._encoder.model_path)
        if config.model_type not in FAMILIES:
            raise UserError(
                f"visible_image_tokens: expected a model of a family whose shortened sequences are proven "
                f"({', '.join(FAMILIES)}), got {config.model_type}; keep whole images for it"
            )
        config.text_config.update(
            {
                "num_hidden_layers": 0,
                "vocab_size": 1,
                "pad_token_id": None,
                "layer_types": [],
            }
        )
        _leave_out_unread_layers(config)
        self._model = AutoModel.from_config(config).to(self._device, self._dtype).eval()
        self._assign(_read_vision(self._encoder.model_path) | self._pushed)
        self._pushed.clear()

    def _assign(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._model.state_dict().items():
            if (value := weights.get(hub_name(f"model.{name}"))) is not None:
                parameter.copy_(value)


def by_images(
    requests: Sequence[GenerationRequest], num_images: int = BATCH
) -> Iterator[list[GenerationRequest]]:
    """The requests in order, cut into runs of at most `num_images` images of which only some tokens are visible."""
    batch: list[GenerationRequest] = []
    seen: set[str] = set()
    for request in requests:
        new = {
            image.sha256
            for image in request.prompt.images
            if request.visible_image_tokens
        } - seen
        if batch and new and len(seen) + len(new) > num_images:
            yield batch
            batch, seen = [], set()
            new = {image.sha256 for image in request.prompt.images}
        batch.append(request)
        seen |= new
    if batch:
        yield batch


def vision_inputs(model_inputs: Mapping[str, Any]) -> Inputs:
    """What `get_image_features` takes of a processor's output: pixels, sizes and grids, no token types."""
    return {
        name: value
        for name, value in model_inputs.items()
        if name.startswith(("pixel_values", "image_"))
    }


def _leave_out_unread_layers(config: Any) -> None:
    """LLaVA reads the output of CLIP's last layer but one: what comes after it is computed for nobody."""
    layer = getattr(config, "vision_feature_layer", None)
    if (
        isinstance(layer, int)
        and layer < -1
        and config.vision_config.model_type == "clip_vision_model"
    ):
        config.vision_config.num_hidden_layers += layer + 1
        config.vision_feature_layer = -1


def _read_vision(model_path: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(model_path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                if is_vision_side(hub_name(name)):
                    found[hub_name(name)] = weights.get_tensor(name)
    return found
