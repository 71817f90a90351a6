"""A preference pair as tokens and tensors."""

from __future__ import annotations

from dataclasses import dataclass

from common.chat import EncodedPrompt
from common.records import PreferencePair


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair that can be trained on, with its prompt's tensors and both responses as tokens."""

    pair: PreferencePair
    prompt: EncodedPrompt
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def has_media(self) -> bool:
        """Whether the vision tower runs for this pair."""
        return bool(self.pair.prompt.images)

    @property
    def prompt_key(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Equal for pairs whose prompts are the same to the model: tokens and images."""
        return self.prompt.token_ids, self.image_key

    @property
    def image_key(self) -> tuple[str, ...]:
        """The prompt's images by content, in order."""
        return tuple(image.sha256 for image in self.pair.prompt.images)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and both responses, the prompt's once."""
        return len(self.prompt.token_ids) + len(self.chosen) + len(self.rejected)
