"""A judge by similarity: the cosine of a completion and its picture, as CLIP or SigLIP embeds them.

Such models read short texts, 64 or 77 tokens. What is longer is cut, which the note of the completion says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor

from common.config import ClipJudge as Settings
from common.data import images
from common.errors import UserError
from common.loading import check_folder, readable
from common.protocols import JudgeError
from common.records import Dropped, Prompt, RolloutGroup, Verdict
from common.row_faults import refusing
from reward.model_judges.in_turn import in_turn
from reward.model_judges.loading import KEY, load_model

log = logging.getLogger(__name__)


class ClipJudge:
    """Scores in [-1, 1]. Of several pictures the mean counts.

    Raises:
        UserError: the folder holds no model that embeds pictures and texts.
    """

    name = "clip"

    def __init__(self, settings: Settings) -> None:
        check_folder(settings.path, KEY)
        expected = "a model of pictures and texts"
        with readable(settings.path, KEY, expected):
            self._processor = AutoProcessor.from_pretrained(
                settings.path, trust_remote_code=False, local_files_only=True
            )
        model = load_model(AutoModel, settings.path, expected)
        self._device = model.device
        text_config = model.config.get_text_config()
        if not hasattr(model, "get_image_features") or not hasattr(
            self._processor, "image_processor"
        ):
            raise UserError(
                f"{KEY} {settings.path}: expected a CLIP or SigLIP model, got {model.config.model_type}; give one"
            )
        self._model = model
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
        pictures = self._embedded_pictures(group.prompt)
        scores: list[float] = []
        notes: list[str] = []
        for completion in group.completions:
            # One at a time: a score does not depend on the other completions, not even by rounding.
            words, num_tokens = self._embedded_text(completion.text)
            score = float((pictures @ words).mean())
            scores.append(score)
            notes.append(f"similarity {score:.3f}{self._cut_note(num_tokens)}")
        return Verdict(tuple(scores), tuple(notes))

    def _embedded_pictures(self, prompt: Prompt) -> torch.Tensor:
        """(pictures, size), of length 1 (Refused when one cannot be read)."""
        pixels = [images.read(ref) for ref in prompt.images]
        with refusing(
            "processor",
            f"prompt {prompt.id}: expected pictures that the judge's processor takes",
            "leave the row out",
        ):
            inputs = self._processor.image_processor(pixels, return_tensors="pt")
        outputs = self._model.get_image_features(**inputs.to(self._device))
        return normalize(outputs.pooler_output.float(), dim=-1)

    def _embedded_text(self, text: str) -> tuple[torch.Tensor, int]:
        """(size,), of length 1, and the number of tokens of the whole text."""
        tokenizer = self._processor.tokenizer
        with refusing(
            "tokenizer",
            f"answer {text[:40]!r}: expected a text that the judge's tokenizer takes",
            "leave the row out",
        ):
            num_tokens = len(tokenizer(text, verbose=False)["input_ids"])
            inputs = tokenizer(
                [text],
                padding="max_length",
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
        inputs.pop("token_type_ids", None)
        if "siglip" in self._model.config.model_type:
            # SigLIP was trained to read its padding.
            inputs.pop("attention_mask", None)
        outputs = self._model.get_text_features(**inputs.to(self._device))
        return normalize(outputs.pooler_output[0].float(), dim=-1), num_tokens

    def _cut_note(self, num_tokens: int) -> str:
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
