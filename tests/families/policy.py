"""A case's model in transformers alone: the truth that engine and learner are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from common.records import Prompt
from tests.families.case import Case


class HubPolicy:
    """Processor and model as a program without sightline loads them.

    Args:
        dtype: of the weights and pixels.

    Attributes:
        hidden_inputs: what the model is not given of the processor's outputs.
    """

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        folder = case.directory()
        self.processor = AutoProcessor.from_pretrained(folder)
        options = {}
        if dtype == torch.float64:
            # torch's grouped products are of float32 at the most.
            options["experts_implementation"] = "eager"
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, **options
        )
        self.model.eval()
        self.hidden_inputs: tuple[str, ...] = ()

    def inputs(self, prompt: Prompt) -> dict[str, Any]:
        """What transformers makes of a conversation: tokens with pictures expanded, pixels and more."""
        pictures = [Image.open(image.path).convert("RGB") for image in prompt.images]
        waiting = iter(pictures)
        conversation = []
        for message in prompt.messages:
            content: list[dict[str, Any]] = []
            for part in message.parts:
                if part.kind == "image":
                    content.append({"type": "image", "image": next(waiting)})
                else:
                    content.append({"type": "text", "text": part.text})
            conversation.append({"role": message.role, "content": content})
        inputs = self.processor.apply_chat_template(
            conversation,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        return dict(inputs)

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's tokens."""
        return tuple(self.inputs(prompt)["input_ids"][0].tolist())

    def logits(self, prompt: Prompt, answer: Sequence[int]) -> torch.Tensor:
        """Logits [answer tokens + 1, vocabulary]: before each token of the answer, and behind the last."""
        inputs = self.inputs(prompt)
        for name in self.hidden_inputs:
            del inputs[name]
        ids = torch.cat([inputs.pop("input_ids"), torch.tensor([list(answer)])], 1)
        inputs["attention_mask"] = torch.ones_like(ids)
        dtype = self.model.dtype
        for name, value in inputs.items():
            # Token types of the prompt go on as text, 0.
            if name.endswith("token_type_ids"):
                pad = (0, len(answer))
                inputs[name] = torch.nn.functional.pad(value, pad)
            elif value.is_floating_point():
                inputs[name] = value.to(dtype)
        logits = self.model(input_ids=ids.long(), use_cache=False, **inputs).logits
        return logits[0, -len(answer) - 1 :]  # type: ignore[no-any-return]

    def token_logprobs(self, prompt: Prompt, answer: Sequence[int]) -> torch.Tensor:
        """Log-prob of each token of the answer, [answer tokens]."""
        logits = self.logits(prompt, answer)[:-1]
        wide = torch.promote_types(logits.dtype, torch.float32)
        logprobs = logits.to(wide).log_softmax(-1)
        return logprobs.gather(1, torch.tensor(answer)[:, None])[:, 0]
