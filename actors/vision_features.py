"""Image features for shortened prompts, from one place only: the Hugging Face tower and projector of the policy.

The tower inside vLLM differs from it by 1e-3; features of two sources in one comparison would look like an effect.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModel

from common.chat import ChatEncoder, PromptError
from common.errors import UserError
from common.protocols import Tensors
from common.records import Prompt
from common.weights import from_array, hub_name, is_vision

FAMILIES = ("llava", "llava_next")
CAPACITY = 256


class VisionFeatures:
    """Features by image content under the current weights. The model is read from disk at the first use."""

    def __init__(self, encoder: ChatEncoder, dtype: torch.dtype) -> None:
        self._encoder = encoder
        self._dtype = dtype
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = None
        self._pushed: dict[str, torch.Tensor] = {}
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()

    def visible(self, prompt: Prompt, indices: Sequence[int]) -> torch.Tensor:
        """Rows `indices` of the prompt's only image, shape (len(indices), hidden), on the CPU.

        Raises:
            PromptError: `image_count` unless there is one image, `image_tokens` when the indices are none of its.
        """
        if len(prompt.images) != 1:
            raise PromptError(
                "image_count", f"prompt {prompt.id}: expected one image to be shortened, got {len(prompt.images)}"
            )
        rows = self._features(prompt)
        if list(indices) != sorted(set(indices)) or not indices or indices[0] < 0 or indices[-1] >= len(rows):
            raise PromptError(
                "image_tokens",
                f"prompt {prompt.id}: expected rising indices of {len(rows)} image tokens, got {list(indices)[:8]}",
            )
        return rows[list(indices)].contiguous()

    def load(self, tensors: Tensors) -> None:
        """Take over the vision side of pushed weights and forget features of the old ones."""
        for name, array in tensors.items():
            if is_vision(name):
                key, value = from_array(name, array)
                self._pushed[key] = value.clone()  # the arrays may be mapped memory that goes away after the push
        self._cache.clear()
        if self._model is not None:
            self._assign(self._pushed)
            self._pushed.clear()

    @torch.inference_mode()
    def _features(self, prompt: Prompt) -> torch.Tensor:
        key = prompt.images[0].sha256
        if key not in self._cache:
            if self._model is None:
                self._build()
            inputs = self._encoder.encode_prompt(prompt).model_inputs
            moved = {n: x.to(self._device, self._dtype if x.is_floating_point() else None) for n, x in inputs.items()}
            self._cache[key] = torch.cat(list(self._model.get_image_features(**moved).pooler_output)).cpu()
            if len(self._cache) > CAPACITY:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _build(self) -> None:
        """The policy without its language model: no layers, a vocabulary of one."""
        config = type(self._encoder.config).from_pretrained(self._encoder.model_path)
        if config.model_type not in FAMILIES:
            raise UserError(
                f"visible_image_tokens: expected a model with plain positions ({', '.join(FAMILIES)}), got "
                f"{config.model_type}; keep whole images for it"
            )
        config.text_config.update({"num_hidden_layers": 0, "vocab_size": 1, "pad_token_id": None, "layer_types": None})
        self._model = AutoModel.from_config(config).to(self._device, self._dtype).eval()
        self._assign(_read_vision(self._encoder.model_path) | self._pushed)
        self._pushed.clear()

    def _assign(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._model.state_dict().items():
            if (value := weights.get(hub_name(f"model.{name}"))) is not None:
                parameter.copy_(value)


def _read_vision(model_path: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(model_path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                if is_vision(hub_name(name)):
                    found[hub_name(name)] = weights.get_tensor(name)
    return found
