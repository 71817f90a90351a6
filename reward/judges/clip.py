"""A judge by similarity: the cosine of a completion and its picture, as CLIP or SigLIP embeds them.

Such models read short texts, 64 or 77 tokens. What is longer is cut, which the note of the completion says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import torch
from transformers import AutoModel, AutoProcessor

from common.config import ClipJudge as Settings
from common.data import images
from common.errors import UserError
from common.loading import check_folder, readable
from common.protocols import JudgeError
from common.records import Dropped, RolloutGroup, Verdict
from reward.judges.in_turn import in_turn
from reward.judges.torch_models import device_and_dtype

KEY = "reward.judge.path"

log = logging.getLogger(__name__)


class ClipJudge:
    """Scores in [-1, 1]. Of several pictures the mean counts.

    Raises:
        UserError: the folder holds no model that embeds pictures and texts.
    """

    name = "clip"

    def __init__(self, settings: Settings) -> None:
        check_folder(settings.path, KEY)
        self._device, dtype = device_and_dtype()
        expected = "a model of pictures and texts"
        with readable(settings.path, KEY, expected):
            self._processor = AutoProcessor.from_pretrained(
                settings.path, local_files_only=True
            )
            model = AutoModel.from_pretrained(
                settings.path, local_files_only=True, use_safetensors=True, dtype=dtype
            )
        text_config = model.config.get_text_config()
        if not hasattr(model, "get_image_features") or not hasattr(
            self._processor, "image_processor"
        ):
            raise UserError(
                f"{KEY} {settings.path}: expected a CLIP or SigLIP model, got {model.config.model_type}; give one"
            )
        self._model = model.to(self._device).eval()
        self.max_tokens: int = text_config.max_position_embeddings
        self.num_cut = 0
        """Completions that were too long."""

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        """One verdict per group, in order; a group without a readable picture is dropped as `judge_failed`."""
        # The forwards run in a thread: the worker goes on answering its other callers.
        return await asyncio.to_thread(in_turn, self.name, groups, self._judge_group)

    @torch.no_grad()
    def _judge_group(self, group: RolloutGroup) -> Verdict:
        if not group.prompt.images:
            raise JudgeError(
                f"prompt {group.prompt.id}: expected a picture to compare with, got none"
            )
        pixels = [images.read(ref) for ref in group.prompt.images]
        texts = [completion.text for completion in group.completions]
        inputs = self._processor(
            text=texts,
            images=pixels,
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        if "siglip" in self._model.config.model_type:
            # SigLIP was trained to read its padding.
            inputs.pop("attention_mask", None)
        outputs = self._model(**inputs.to(self._device))
        # Both are of length 1: (texts, images) cosines.
        cosines = outputs.text_embeds @ outputs.image_embeds.T
        scores = cosines.float().mean(dim=1).tolist()
        notes = []
        for text, score in zip(texts, scores, strict=True):
            notes.append(f"similarity {score:.3f}{self._cut_note(text)}")
        return Verdict(tuple(scores), tuple(notes))

    def _cut_note(self, text: str) -> str:
        num_tokens = len(self._processor.tokenizer(text, verbose=False)["input_ids"])
        if num_tokens <= self.max_tokens:
            return ""
        self.num_cut += 1
        if self.num_cut == 1:
            log.warning(
                "judge %s: completions of more than %d tokens are cut; its notes say which",
                self.name,
                self.max_tokens,
            )
        return f", of the first {self.max_tokens} of {num_tokens} tokens"
