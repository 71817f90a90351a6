"""A judge that was trained to be one: a scalar head on a language model, or on one that sees pictures.

    head = "classification"    transformers' ForSequenceClassification; of several labels one is the score
    head = "value"             `v_head.summary` beside the weights, as TRL's value heads are saved: a linear map of the
                               last layer at the last token

The model reads the conversation with the completion as its last turn, by its own chat template. Nothing is cut: what
does not fit is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from common.config import RewardModelJudge as Settings
from common.errors import UserError
from common.loading import check_folder, readable
from common.records import Dropped, RolloutGroup, Verdict
from reward.model_judges.conversations import Conversations, TextsOnly, WithPictures
from reward.model_judges.in_turn import in_turn
from reward.model_judges.loading import KEY, device, load_model

VALUE_WEIGHT = "v_head.summary.weight"
VALUE_BIAS = "v_head.summary.bias"
_HEAD = "lm_head.weight"


class RewardModelJudge:
    """Scores by the model in `settings.path`. A model of texts never sees the pictures.

    Raises:
        UserError: the folder holds no such model, no such head, or no such label.
    """

    name = "reward_model"

    def __init__(self, settings: Settings) -> None:
        check_folder(settings.path, KEY)
        self._device = device()
        with readable(settings.path, KEY):
            config = AutoConfig.from_pretrained(
                settings.path, trust_remote_code=False, local_files_only=True
            )
        self.sees = hasattr(config, "vision_config")
        self._conversations: Conversations
        if self.sees:
            self._conversations = WithPictures(settings.path, settings.max_length, KEY)
        else:
            self._conversations = TextsOnly(settings.path, settings.max_length, KEY)
        if settings.head == "value":
            self._model: _Scorer = _ValueHead(settings.path, self.sees)
        else:
            self._model = _Classifier(settings.path, settings.label)

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        """One verdict per group, in order; a group that does not fit or has no readable picture is `judge_failed`."""
        # The forwards run in a thread: the worker goes on answering its other callers.
        return await asyncio.to_thread(in_turn, self.name, groups, self._judge_group)

    @torch.no_grad()
    def _judge_group(self, group: RolloutGroup) -> Verdict:
        # One sequence at a time: padding would have to suit every family's positions.
        scores: list[float] = []
        for inputs in self._conversations.inputs_of(group):
            placed = {name: value.to(self._device) for name, value in inputs.items()}
            scores.append(self._model.score(placed))
        notes = tuple(f"reward {score:.3f}" for score in scores)
        return Verdict(tuple(scores), notes)


class _Scorer(Protocol):
    """A model and how its score is read."""

    model: Any

    def score(self, inputs: Mapping[str, Any]) -> float: ...


class _Classifier:
    """One of the labels of a sequence classifier."""

    def __init__(
        self,
        path: str,
        label: int,
    ) -> None:
        expected = "a model with a sequence classification head"
        self.model = load_model(AutoModelForSequenceClassification, path, expected)
        if label >= self.model.config.num_labels:
            raise UserError(
                f"reward.judge.label: expected less than the {self.model.config.num_labels} labels of {path}, got "
                f"{label}; name one of them"
            )
        self._label = label

    def score(self, inputs: Mapping[str, Any]) -> float:
        return float(self.model(**inputs).logits[0, self._label])


class _ValueHead:
    """A linear map of the last token's last layer."""

    def __init__(
        self,
        path: str,
        sees: bool,
    ) -> None:
        with readable(path, KEY, "a value head"):
            weights = _tensors(Path(path), (VALUE_WEIGHT, VALUE_BIAS))
        if set(weights) != {VALUE_WEIGHT, VALUE_BIAS}:
            raise UserError(
                f"{KEY} {path}: expected {VALUE_WEIGHT} and {VALUE_BIAS} in its safetensors, got none; give a "
                'model with a value head, or set reward.judge.head = "classification"'
            )
        self._weight = weights[VALUE_WEIGHT].float()
        self._bias = weights[VALUE_BIAS].float()
        auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        self.model = load_model(auto, path, "a model with a value head", (_HEAD,))

    def score(self, inputs: Mapping[str, Any]) -> float:
        outputs = self.model(**inputs, output_hidden_states=True)
        # (hidden,): what the model knows after the whole conversation.
        last = outputs.hidden_states[-1][0, -1].float().cpu()
        return float(self._weight[0] @ last + self._bias[0])


def _tensors(
    folder: Path,
    names: Sequence[str],
) -> dict[str, torch.Tensor]:
    """Those of these tensors that the folder's safetensors hold."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in set(names).intersection(weights.keys()):
                tensors[name] = weights.get_tensor(name)
    return tensors
